"""Consumers: they hand the messages of a category to handlers and record how far they are."""

from messagedb_sa.consumer._async import AsyncConsumer
from messagedb_sa.consumer._options import ConsumerOptions
from messagedb_sa.consumer._registry import Handlers
from messagedb_sa.consumer._state import ConsumerState
from messagedb_sa.consumer._sync import Consumer

__all__ = ["AsyncConsumer", "Consumer", "ConsumerOptions", "ConsumerState", "Handlers"]
