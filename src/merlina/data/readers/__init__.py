"""Reading rows from files, addresses and the Hub: json, jsonl, csv, tsv and parquet, with a limit per row."""
