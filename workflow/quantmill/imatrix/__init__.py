"""What an importance matrix covers, and one that was published, checked against a model."""
