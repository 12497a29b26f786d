"""From a template to a plan: the type of each tensor, and the reason for it."""
