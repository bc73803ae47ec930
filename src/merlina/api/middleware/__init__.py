"""ASGI middleware, one module per concern, wired in `api.app`."""
