"""Read rows from files, addresses and the Hub, and convert them to pairs as text; independent of any tokenizer."""
