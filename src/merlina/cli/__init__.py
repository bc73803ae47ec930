"""The `merlina` commands: most call a server through the client; `serve`, `bench` and `demo` run on this machine."""
