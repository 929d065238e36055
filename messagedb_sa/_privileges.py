"""The privileges that a role needs for each task, as GRANT takes them."""

from __future__ import annotations

import re
from collections.abc import Iterable

READ = (
    "USAGE ON SCHEMA message_store",
    "SELECT ON ALL TABLES IN SCHEMA message_store",
    "SELECT ON ALL SEQUENCES IN SCHEMA message_store",
    "EXECUTE ON ALL FUNCTIONS IN SCHEMA message_store",
)
WRITE = ("INSERT ON message_store.messages", "USAGE ON ALL SEQUENCES IN SCHEMA message_store")
"""Beside those to read."""
CONSUME = ("SELECT, INSERT, UPDATE ON message_store.consumer_positions",)
"""Beside those to write, to keep positions in the table."""


def grants(role: str, privileges: Iterable[str]) -> list[str]:
    """The statements, without semicolons. ``role`` is quoted already."""
    return [f"GRANT {each} TO {role}" for each in privileges]


def quoted(name: str) -> str:
    """The name as an identifier in SQL."""
    return name if re.fullmatch("[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'
