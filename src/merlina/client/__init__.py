"""The blocking and the asynchronous client: one method for each endpoint, with typed results."""

from merlina.client.async_client import AsyncClient
from merlina.client.client import Client
from merlina.client.connection import DEFAULT_URL

__all__ = ["DEFAULT_URL", "AsyncClient", "Client"]
