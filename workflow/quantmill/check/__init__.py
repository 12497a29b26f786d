"""What a model is good for, whether an engine loads it, and whether it answers."""
