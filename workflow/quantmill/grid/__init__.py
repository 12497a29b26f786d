"""Values that lie on the grid of a type already: looked for, and taken apart into scales and codes."""
