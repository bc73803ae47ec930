"""`merlina data`: the format, the findings and an example of a data set, without a server."""
