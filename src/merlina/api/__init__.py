"""The HTTP and WebSocket interface: routes one module a section of the contract, wired together in `app`."""
