"""The engine: packs, passes, attention, fused layers, output head, log-probabilities, choice of the fast path."""
