"""The metrics of writes, around their spans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from messagedb_sa import stream_name as names
from messagedb_sa._clock import monotonic
from messagedb_sa._instruments import Instruments
from messagedb_sa.errors import InvalidArgument

if TYPE_CHECKING:
    from messagedb_sa.store._write_spans import WriteSpans

# The types of the messages of the write that is being built, by category.
_types: ContextVar[dict[str, list[str]] | None] = ContextVar("messagedb_sa.types", default=None)


class MeasuredWrites:
    def __init__(self, instruments: Instruments, spans: WriteSpans) -> None:
        self._instruments = instruments
        self._spans = spans
        self.with_context = spans.with_context

    @contextmanager
    def writing(self, stream_name: object = None) -> Iterator[None]:
        types: dict[str, list[str]] = {}
        token = _types.set(types)
        began = monotonic()
        try:
            with self._spans.writing(stream_name):
                yield
        except Exception as error:
            self._record(types, began, error)
            raise
        else:
            self._record(types, began, None)
        finally:
            _types.reset(token)

    def _record(self, types: dict[str, list[str]], began: float, error: Exception | None) -> None:
        # Of arguments that were refused, nothing was sent.
        if types and not isinstance(error, InvalidArgument):
            self._instruments.wrote(types, monotonic() - began, error)

    def describe_message(self, stream_name: str, id: str, message_type: str) -> None:
        self._spans.describe_message(stream_name, id, message_type)
        self._add(stream_name, [message_type])

    def describe_batch(self, types: Mapping[str, Sequence[str]]) -> None:
        self._spans.describe_batch(types)
        for stream_name, of_messages in types.items():
            self._add(stream_name, of_messages)

    def _add(self, stream_name: str, message_types: Sequence[str]) -> None:
        known = _types.get()
        if known is not None:
            known.setdefault(names.category(stream_name), []).extend(message_types)
