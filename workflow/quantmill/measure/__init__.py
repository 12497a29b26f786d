"""Importance, perplexity and speed, through the native engine."""
