"""OpenTelemetry metrics of writes, of consumers, and of how far these are."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from messagedb_sa import _arguments as arguments
from messagedb_sa import _instruments as instruments
from messagedb_sa import _spans as spans
from messagedb_sa._attempts import Attempts, in_thread
from messagedb_sa._clock import monotonic
from messagedb_sa.errors import InvalidArgument

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from sqlalchemy import Connection

    from messagedb_sa.store import ConsumerStatus, Store

with suppress(ImportError):
    # Metrics says so when it is made.
    from opentelemetry import metrics

__all__ = ["Metrics"]

# Less than the ten seconds after which OpenTelemetry's reader gives up.
_ANSWER_SECONDS = 5.0


class Metrics:
    """Counts and durations of writes and of handlers, for ``Store(…, metrics=…)`` and for consumers of that store. Safe
    to share between threads, stores and consumers.

    Names and attributes follow OpenTelemetry's conventions for messaging. The category is the destination; no attribute
    has the name of a stream. ``by_type``: messages that are written and handled are also told apart by their type. Use
    that if there are few.

    ``meter_provider`` None means OpenTelemetry's global one, even if that is set later. Raises
    MessageDBError if OpenTelemetry (extra ``opentelemetry``) is not installed.
    """

    # So that the class has the attribute too, for mocks that are made of it.
    __slots__ = ("__dict__", "__weakref__", "meter")

    meter: Meter
    """What makes the instruments."""

    def __init__(self, meter_provider: MeterProvider | None = None, *, by_type: bool = False) -> None:
        spans.check_installed("metrics need")
        if not (meter_provider is None or isinstance(meter_provider, metrics.MeterProvider)):
            raise InvalidArgument("meter_provider", meter_provider, "must be a MeterProvider of OpenTelemetry")
        arguments.boolean("by_type", by_type)
        self.meter = metrics.get_meter("messagedb_sa", version("messagedb-sa"), meter_provider)
        self._instruments = instruments.Instruments(self.meter, by_type=by_type)
        self._lags: list[Attempts[list[ConsumerStatus]]] = []

    def observe_consumers(self, store: Store) -> None:
        """Report the age of the first message that each consumer of the store has not handled, by ``store.consumers``.

        The store is asked whenever OpenTelemetry collects, once a second at most, in a thread of its own. If it does
        not answer within 5 seconds, or with an error, no age is reported, and OpenTelemetry logs that. One process is
        enough, since it reports all consumers, wherever they run.

        ``store`` must be on an Engine; if your application has an AsyncStore only, make a Store with its URL.
        """
        from sqlalchemy import Engine

        engine: Any = getattr(store, "bind", None)
        # By name: a Store is built on this module, and a subclass may be made in another way.
        make: Any = next((each for each in type(store).__mro__ if each.__name__ == "Store"), None)
        if make is None or not isinstance(engine, Engine):
            raise InvalidArgument("store", store, "must be a Store on an Engine")

        def ask(connection: Connection) -> list[ConsumerStatus]:
            found: list[ConsumerStatus] = make(connection).consumers(lag=False)
            return found

        if not self._lags:
            instruments.lag(self.meter, self._observed)
        self._lags.append(Attempts(in_thread(engine, ask)))

    def _observed(self, options: CallbackOptions) -> Iterable[Observation]:
        # First all, so that they are asked at the same time.
        attempts = [lag.current() for lag in self._lags]
        until = monotonic() + _ANSWER_SECONDS
        failed: Exception | None = None
        for attempt in attempts:
            attempt.end_if_hanging()
            try:
                statuses = attempt.answer.result(max(0.0, until - monotonic()))
            except Exception as error:  # noqa: BLE001 - raised below, after what the other stores tell
                failed = error
                continue
            now = datetime.now(timezone.utc)
            for status in statuses:
                attributes: dict[str, Any] = {**instruments.of_consumer(status.category, status.identifier)}
                if status.group_size is not None:
                    attributes |= {spans.MEMBER: status.group_member, instruments.GROUP_SIZE: status.group_size}
                since = status.waiting_since
                yield metrics.Observation(0.0 if since is None else max(0.0, (now - since).total_seconds()), attributes)
        if failed is not None:
            raise failed
