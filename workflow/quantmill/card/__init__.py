"""The model card, written from the measurements' files alone."""
