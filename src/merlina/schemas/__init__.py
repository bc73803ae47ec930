"""Validated data that crosses a boundary: requests, responses, configuration files and events."""
