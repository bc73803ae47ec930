"""The fast path of one optimizer step: pair layout, packs and passes, attention masks, fused layers, output head, log-probabilities."""
