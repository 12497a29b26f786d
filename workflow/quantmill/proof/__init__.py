"""Proof of what was made: the lock, its verification by rebuilding, statements, a signature."""
