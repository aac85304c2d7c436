"""Clients of a server, for asyncio and for programs without an event loop; they need neither Ray nor torch."""

from serving.client.aio import AsyncClient
from serving.client.blocking import Client

__all__ = ["AsyncClient", "Client"]
