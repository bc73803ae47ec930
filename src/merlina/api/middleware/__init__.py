"""ASGI middleware, one module per concern: API key and sessions, Host and Origin, body limits, response cache, HEAD, sub-path."""
