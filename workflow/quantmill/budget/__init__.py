"""Recipes fitted to a size: what each tensor may be, the best of it, and the rules that say so."""
