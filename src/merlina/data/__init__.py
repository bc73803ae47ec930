"""From a file or the Hub to formatted preference pairs: sources, columns, pairs, formats. Knows no tokenizer."""
