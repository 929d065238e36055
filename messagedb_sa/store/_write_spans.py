"""What a write does for tracing and for metrics. Without them, it does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from messagedb_sa.errors import InvalidArgument

if TYPE_CHECKING:
    from messagedb_sa.metrics import Metrics
    from messagedb_sa.tracing import Tracing


class WriteSpans(Protocol):
    def writing(self, stream_name: object = None) -> AbstractContextManager[None]:
        """Build and execute the write within this block. None: a write to several streams."""

    def describe_message(self, stream_name: str, id: str, message_type: str) -> None: ...

    def describe_batch(self, types: Mapping[str, Sequence[str]]) -> None:
        """``types`` are those of the messages, by stream."""

    def with_context(self, metadata: list[Any]) -> list[Any]:
        """The metadata of the messages, with the context of the current span added."""


def write_spans(tracing: Tracing | None, metrics: Metrics | None) -> WriteSpans:
    traced = _traced(tracing)
    if metrics is None:
        return traced
    # Imported only here, since they import OpenTelemetry.
    from messagedb_sa.metrics import Metrics
    from messagedb_sa.store._measured_writes import MeasuredWrites

    if not isinstance(metrics, Metrics):
        raise InvalidArgument("metrics", metrics, "must be a Metrics, such as Metrics(), or None")
    return MeasuredWrites(metrics._instruments, traced)


def _traced(tracing: Tracing | None) -> WriteSpans:
    if tracing is None:
        return _Untraced()
    # Imported only here, since they import OpenTelemetry.
    from messagedb_sa.store._traced_writes import TracedWrites
    from messagedb_sa.tracing import Tracing

    if not isinstance(tracing, Tracing):
        raise InvalidArgument("tracing", tracing, "must be a Tracing, such as Tracing(), or None")
    return TracedWrites(tracing.tracer)


class _Untraced:
    _nothing = nullcontext()

    def writing(self, stream_name: object = None) -> AbstractContextManager[None]:
        return self._nothing

    def describe_message(self, stream_name: str, id: str, message_type: str) -> None:
        pass

    def describe_batch(self, types: Mapping[str, Sequence[str]]) -> None:
        pass

    def with_context(self, metadata: list[Any]) -> list[Any]:
        return metadata
