"""Size-targeted recipes: the candidate types of each tensor, the best choice in a budget, its rules."""
