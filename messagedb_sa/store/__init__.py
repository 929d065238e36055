"""The store: Message DB's operations on SQLAlchemy engines, connections and sessions."""

from messagedb_sa.store._async import AsyncStore
from messagedb_sa.store._consumer_status import ConsumerStatus
from messagedb_sa.store._dead_letters import DeadLetter
from messagedb_sa.store._looking import Activity, CategorySummary, OpenWriter, StreamSummary
from messagedb_sa.store._statements import NO_STREAM
from messagedb_sa.store._sync import Store

__all__ = [
    "NO_STREAM",
    "Activity",
    "AsyncStore",
    "CategorySummary",
    "ConsumerStatus",
    "DeadLetter",
    "OpenWriter",
    "Store",
    "StreamSummary",
]
