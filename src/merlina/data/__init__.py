"""Read rows from a file or the Hub and convert them to formatted preference pairs; independent of any tokenizer."""
