"""The command line: thin, over the client; `serve` alone runs the server itself."""
