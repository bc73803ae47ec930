"""The checks behind `/validate` and before `/train`: each a small function with one question."""
