"""The HTTP and WebSocket interface: routes, middleware, uploads, and the wiring of the server's parts in `app`."""
