"""Where a message came from, and what it caused: a tree, with the place of each message in its picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from messagedb_sa._metadata_fields import CAUSATION_POSITION, CAUSATION_STREAM
from messagedb_sa.message import Message

INDENT = 28
ROW = 64
WIDTH = 330
HEIGHT = 50
_SHORT = 38


class Node(NamedTuple):
    message: Message
    x: int
    y: int
    parent: Node | None
    is_cause: bool

    @property
    def type(self) -> str:
        return _shortened(self.message.type, _SHORT - 13)

    @property
    def stream_name(self) -> str:
        return _shortened(self.message.stream_name, _SHORT)

    @property
    def line(self) -> str:
        """From the message that caused it."""
        assert self.parent is not None
        x, y = self.parent.x + INDENT // 2, self.parent.y + HEIGHT
        to = self.y + HEIGHT // 2
        return f"M{x} {y}V{to - 8}q0 8 8 8H{self.x}"

    def after(self, first: Message) -> str:
        """How much later it was written than the first one."""
        seconds = (self.message.time - first.time).total_seconds()
        for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
            if abs(seconds) >= size:
                return f"{seconds / size:+.1f} {unit}"
        return f"{seconds * 1_000:+.0f} ms"


class Graph(NamedTuple):
    nodes: list[Node]
    width: int
    height: int


def graph_of(message: Message, causes: Iterable[Message], effects: Iterable[Message]) -> Graph:
    """``causes`` with the first one first. Each message stands below the one that caused it, and to its right."""
    caused: dict[tuple[object, str], list[Message]] = {}
    for each in effects:
        caused.setdefault(_cause_of(each), []).append(each)
    nodes: list[Node] = []
    parent: Node | None = None
    for depth, each in enumerate([*causes, message]):
        parent = Node(each, depth * INDENT, len(nodes) * ROW, parent, each is not message)
        nodes.append(parent)
    assert parent is not None
    seen = {_name_of(node.message) for node in nodes}
    pending = [(parent, each) for each in reversed(caused.get(_name_of(message), []))]
    while pending:
        parent, each = pending.pop()
        if _name_of(each) in seen:
            continue
        seen.add(_name_of(each))
        node = Node(each, parent.x + INDENT, len(nodes) * ROW, parent, False)
        nodes.append(node)
        pending += [(node, effect) for effect in reversed(caused.get(_name_of(each), []))]
    return Graph(nodes, max(node.x for node in nodes) + WIDTH, len(nodes) * ROW - (ROW - HEIGHT))


def _name_of(message: Message) -> tuple[object, str]:
    return message.stream_name, str(message.position)


def _cause_of(message: Message) -> tuple[object, str]:
    metadata = message.metadata if isinstance(message.metadata, dict) else {}
    return metadata.get(CAUSATION_STREAM), str(metadata.get(CAUSATION_POSITION))


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"
