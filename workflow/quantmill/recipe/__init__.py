"""From a template to a plan: which type each tensor gets, and why."""
