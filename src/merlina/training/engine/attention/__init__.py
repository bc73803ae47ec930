"""Attention over the segments of a pack, and rotary embeddings."""
