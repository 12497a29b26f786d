"""What the measurements mean: differences, frontiers, validity. It reads files and gives verdicts."""
