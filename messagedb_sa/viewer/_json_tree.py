"""JSON text as a tree to fold: bounded in depth and in number, and with each number as it stands there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

MOST_NODES = 1_500
_MOST_OF_ONE = 200
_DEEPEST = 40
_OPEN_ABOVE = 3


class Node(NamedTuple):
    kind: str
    """object, array, string, number, literal; more, for those that are not shown."""
    key: str | None = None
    """The name in an object. None for all others."""
    text: str = ""
    """What a value is; of an object or array, how many it has."""
    children: tuple[Node, ...] = ()
    is_open: bool = False


class _Number(str):
    __slots__ = ()


def tree_of(text: str) -> Node | None:
    """None if Python cannot read the text: PostgreSQL stores JSON that is nested deeper."""
    try:
        value = json.loads(text, parse_int=_Number, parse_float=_Number)
    except (ValueError, RecursionError):
        return None
    return _Tree().node(None, value, 0)


class _Tree:
    def __init__(self) -> None:
        self._left = MOST_NODES

    def node(self, key: str | None, value: Any, depth: int) -> Node:
        self._left -= 1
        if isinstance(value, _Number):
            return Node("number", key, value)
        if isinstance(value, str):
            return Node("string", key, value)
        if isinstance(value, dict):
            return self._several("object", key, len(value), iter(value.items()), depth)
        if isinstance(value, list):
            return self._several("array", key, len(value), ((None, each) for each in value), depth)
        return Node("literal", key, json.dumps(value))

    def _several(
        self, kind: str, key: str | None, size: int, pairs: Iterator[tuple[str | None, Any]], depth: int
    ) -> Node:
        children: list[Node] = []
        if depth < _DEEPEST:
            for name, value in islice(pairs, _MOST_OF_ONE):
                if self._left <= 0:
                    break
                children.append(self.node(name, value, depth + 1))
        if len(children) < size:
            children.append(Node("more", text=str(size - len(children))))
        return Node(kind, key, str(size), tuple(children), depth < _OPEN_ABOVE and len(children) <= 30)
