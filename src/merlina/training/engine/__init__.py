"""The engine: packs, passes, attention masks, fused layers, output head, log-probabilities, and the choice of the fast path."""
