"""What a consumer is doing at this moment."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from messagedb_sa.message import Message

Status: TypeAlias = Literal["new", "connecting", "querying", "handling", "waiting", "stopped", "failed"]


class ConsumerState(NamedTuple):
    """What a consumer of this process is doing at this moment, as its ``state`` returns it.

    ``status`` is one of these:

    - "new": it has not been run.
    - "connecting": it has no connection yet, or has lost it and tries to connect again.
    - "querying": it waits for the database's answer, or is between two of the other things.
    - "handling": a handler has ``message``.
    - "waiting": there is nothing to read, or it pauses before the next attempt.
    - "stopped": ``run`` has returned, or its task was cancelled.
    - "failed": ``run`` has raised ``error``, here the first line of its text after the name of its class.

    ``seconds`` is how long it has been doing that. ``overdue_seconds`` is how much longer it has waited than it meant
    to: more than a moment if its event loop or its process gets no time. ``group_size`` is the number of members or
    slots, None without; ``members`` are those that it reads now, empty if it stands by. ``handled`` is the number of
    messages that were handled in this run, or in the last one.
    """

    category: str
    identifier: str | None
    correlation: str | None
    group_size: int | None
    members: tuple[int, ...]
    status: Status
    seconds: float
    overdue_seconds: float
    message: Message | None
    handled: int
    error: str | None

    @property
    def is_running(self) -> bool:
        return self.status not in ("new", "stopped", "failed")
