"""Models: loading, tokenization, adapter targets, adapters and merging."""
