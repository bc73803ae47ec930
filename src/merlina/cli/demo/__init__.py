"""`merlina demo`: a small training run from a sample data set, with its server."""
