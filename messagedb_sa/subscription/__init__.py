"""Subscriptions: the messages of a stream, a category or ``$all`` as they are written. Nothing is recorded."""

from messagedb_sa.subscription._async import AsyncSubscription
from messagedb_sa.subscription._sync import Subscription

__all__ = ["AsyncSubscription", "Subscription"]
