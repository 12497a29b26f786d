"""What a model is: its file, its tensors' roles, its memory."""
