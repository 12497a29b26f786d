"""What the measurements mean: differences, frontiers, what to doubt. Files in, judgements out."""
