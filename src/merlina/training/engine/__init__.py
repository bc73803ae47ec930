"""The fast path of an optimizer step: packs, passes, attention masks, fused layers, output head, log-probabilities."""
