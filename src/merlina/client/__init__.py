"""Clients for a running server, blocking and asynchronous: one method for each endpoint, typed by the schemas."""

from merlina.client.async_client import AsyncClient
from merlina.client.client import Client
from merlina.client.connection import DEFAULT_URL

__all__ = ["DEFAULT_URL", "AsyncClient", "Client"]
