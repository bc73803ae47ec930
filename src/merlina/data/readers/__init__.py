"""Reading rows from files and from the Hub: json, jsonl, csv, tsv and parquet, with a limit per row."""
