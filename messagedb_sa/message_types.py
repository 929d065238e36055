"""Message types: classes whose instances are written as messages, and returned when those are read."""

from __future__ import annotations

from messagedb_sa._message_types import MessageTypes

__all__ = ["MessageTypes"]
