"""Base model, tokenizer ids and adapters: loading, target matching, encoding, merging."""
