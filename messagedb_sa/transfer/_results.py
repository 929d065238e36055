"""What exports, imports, copies and comparisons return, and the error with which they refuse to begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from messagedb_sa.errors import MessageDBError

OnProgress: TypeAlias = Callable[[int, int | None], object]


class Transferred(NamedTuple):
    """What a call has exported, imported or copied.

    ``messages`` is the number of messages in this call. ``last_global_position`` is that of the last message; for a
    copy, that of the last message in the target, and 0 if there is none. ``unsettled`` is None if the call went to what
    was the end when it began. Otherwise it is the global position before which the call stopped: an open transaction
    may still write a message there.
    """

    messages: int
    last_global_position: int
    unsettled: int | None = None


class Difference(NamedTuple):
    """A message in which two stores differ.

    ``what`` says how: ``"missing in the target"``, ``"only in the target"``, or the names of the fields that differ,
    separated by commas. The other fields are those of the source's message, or of the target's if the source has none.
    """

    global_position: int
    stream_name: str
    position: int
    id: str
    what: str

    def __str__(self) -> str:
        return (
            f"global position {self.global_position}, message {self.position} of stream {self.stream_name!r} "
            f"(id {self.id}): {self.what}"
        )


class Verified(NamedTuple):
    """The result of a comparison of two stores.

    ``messages`` is the number of the source's messages that were compared, and ``last_global_position`` the position up
    to which they were. ``differences`` has the first ones, at most ten; after these, the comparison stops.
    """

    messages: int
    last_global_position: int
    differences: list[Difference]

    @property
    def is_equal(self) -> bool:
        """Whether there are no differences."""
        return not self.differences


class TransferRefused(MessageDBError):
    """An import or a copy was refused before it wrote a message.

    ``problems`` says why: a text for each conflict, at most ten. A conflict in a file names the line.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(list(problems))
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)
