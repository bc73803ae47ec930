"""Data sets: where their rows are, how rows become pairs and text, and responses about them."""
