"""The user's file: what it may say, and what is wrong in it. Only the rules know it."""
