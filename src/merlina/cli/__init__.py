"""The `merlina` commands: most call a server; `serve`, `data`, `bench` and `demo` run on this machine."""
