"""The consumer's loop: read a page of each partition, hand its messages over, wait if there are none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from operator import length_hint
from threading import Lock
from typing import TYPE_CHECKING

from messagedb_sa._clock import monotonic
from messagedb_sa.consumer._delivery import Delivery, TransactionalDelivery
from messagedb_sa.consumer._failures import Failures
from messagedb_sa.consumer._host import Call, Host
from messagedb_sa.consumer._log import ConsumerLog, first_line
from messagedb_sa.consumer._meter import meter_of
from messagedb_sa.consumer._options import POLL_SECONDS, Settings
from messagedb_sa.consumer._partition import Partition
from messagedb_sa.consumer._partitions import Partitions, Released, Stopped
from messagedb_sa.consumer._positions import Positions, Superseded
from messagedb_sa.consumer._progress import Progress
from messagedb_sa.consumer._routing import Router
from messagedb_sa.consumer._session import NOTIFIED_POLL_SECONDS as _NOTIFIED_POLL_SECONDS
from messagedb_sa.consumer._session import ConnectionLost, ConsumerSession, Patience, Unavailable
from messagedb_sa.consumer._signals import stopping as stopped_by_signals
from messagedb_sa.consumer._state import ConsumerState, Status
from messagedb_sa.errors import HandlerFailed
from messagedb_sa.message import Message
from messagedb_sa.message_types import MessageTypes
from messagedb_sa.store._operations import ALL, Operations

if TYPE_CHECKING:
    from messagedb_sa.metrics import Metrics
    from messagedb_sa.tracing import Tracing

# After so much work without a pause, writers need not wake it any more: what they notify of costs them.
_BUSY_SECONDS = 0.1

_WITHOUT_A_CONNECTION = "stops without a connection: its last position is not recorded"


class Loop:
    """Blocking code that both kinds of consumers run; the asynchronous one runs it in SQLAlchemy's greenlet."""

    def __init__(
        self,
        host: Host,
        settings: Settings,
        router: Router,
        types: MessageTypes | None,
        tracing: Tracing | None,
        metrics: Metrics | None,
    ) -> None:
        self._host = host
        self._settings = settings
        self._log = log = ConsumerLog(settings)
        self._router = router
        meter = meter_of(metrics, settings)
        self._session = session = ConsumerSession(host, settings, log, meter)
        operations = Operations(host.engine.dialect, joined=False, metrics=metrics, keeps_undecodable=True)
        positions = Positions(settings, session, operations, log)
        self._partitions = Partitions(host, settings, session, positions, log)
        self._together: TransactionalDelivery | None = None
        if settings.transactional:
            transactional = TransactionalDelivery(
                host, settings, session, positions, self._router, types=types, tracing=tracing, meter=meter
            )
            self._together = transactional if settings.delivers_together else None
            self._delivery: Delivery = transactional
        else:
            self._delivery = Delivery(
                host, settings, session, types=types, tracing=tracing, meter=meter, in_series=not router.needs_greenlet
            )
        self._failures = Failures(settings, session, positions, self._partitions, self._delivery, log)
        self._progress = Progress(settings.name)
        self._running = Lock()
        # While a transaction cannot begin or commit.
        self._patience: Patience | None = None
        # Since when it has work.
        self._busy_since = 0.0
        self._awaited = frozenset((settings.category,))
        self._handled = 0
        # Of the last run: None while it is under way, else what became of it, when, and the error.
        self._outcome: tuple[Status, float, str | None] | None = ("new", monotonic(), None)

    def stop(self) -> None:
        self._host.stop()

    def abandon(self) -> None:
        """In a forked child process: if the handler that forked it returns there, nothing is recorded or handled, and
        ``run`` raises MessageDBError."""
        self._host.abandon()
        self._session.abandon()
        self._partitions.abandon()

    def run(self, *, until_caught_up: bool = False, progress: bool | None = False, handle_signals: bool = True) -> int:
        """Returns the number of messages that were handled."""
        if not self._running.acquire(blocking=False):
            raise RuntimeError("this consumer is running already")
        outcome: Status = "stopped"
        failure: str | None = None
        self._outcome = None
        try:
            with stopped_by_signals(self.stop, pass_on=until_caught_up) if handle_signals else nullcontext():
                self._run(until_caught_up, progress)
            self._session.refuse_child()
        except Exception as error:
            outcome, failure = "failed", first_line(error)
            raise
        finally:
            self._outcome = outcome, monotonic(), failure
            self._host.stopping = False
            self._running.release()
        return self._handled

    def state(self) -> ConsumerState:
        """From any thread. What it is made of is read piece by piece, while the consumer goes on."""
        host, settings, outcome = self._host, self._settings, self._outcome
        members = () if settings.group_size is None else (each.key.group_member for each in self._partitions.current)
        message: Message | None = None
        error: str | None = None
        now = monotonic()
        overdue = 0.0
        status: Status
        if outcome is not None:
            status, since, error = outcome
        elif (handling := host.handling) is not None:
            status = "handling"
            message, since = handling
        elif (unconnected := self._session.unconnected_since) is not None:
            status, since = "connecting", unconnected
        elif (waits := host.waits) is not None:
            status, since = "waiting", waits[0]
            overdue = max(0.0, now - waits[1])
        else:
            status = "querying"
            since = host.asked_at() or now
        return ConsumerState(
            settings.category,
            settings.identifier,
            settings.correlation,
            settings.group_size,
            tuple(sorted(each for each in members if each is not None)),
            status,
            max(0.0, now - since),
            overdue,
            message,
            self._handled,
            error,
        )

    def _run(self, until_caught_up: bool, progress: bool | None) -> None:
        self._handled = 0
        self._patience = None
        self._failures.forget()
        with self._host.waiting():
            ended_by: BaseException | None = None
            stops_again = False
            try:
                self._progress.begin(progress)
                self._session.start()
                self._partitions.assign()
                self._log(logging.INFO, "started")
                while True:
                    try:
                        self._consume(until_caught_up)
                        break
                    except ConnectionLost as lost:
                        self._partitions.free_slots()
                        gives_up, stops_again = stops_again, self._host.stopping
                        if gives_up or not self._session.reopen(lost, self._partitions.assign):
                            self._log(logging.WARNING, _WITHOUT_A_CONNECTION)
                            break
            except Unavailable:
                # It was asked to stop before it began to read.
                pass
            except ConnectionLost as lost:
                if not self._host.watch.has_given_up:
                    ended_by = lost.error
                    raise lost.error from None
                self._log(logging.WARNING, _WITHOUT_A_CONNECTION)
            except BaseException as error:
                ended_by = error
                raise
            finally:
                self._progress.end()
                try:
                    self._partitions.leave()
                finally:
                    self._session.close()
                    self._log_end(ended_by)

    def _log_end(self, error: BaseException | None) -> None:
        if isinstance(error, Exception):
            # A handler's failure was logged already, with its message.
            level = logging.INFO if isinstance(error, HandlerFailed) else logging.ERROR
            self._log(level, f"stopped by {first_line(error)}", handled=self._handled)
        else:
            self._log(logging.INFO, "stopped", handled=self._handled)

    def _consume(self, until_caught_up: bool) -> None:
        partitions = self._partitions
        try:
            partitions.keep_up()
            self._progress.expect(partitions.backlog)
            while not self._host.stopping:
                partitions.keep_up()
                if sum([self._read(partition) for partition in partitions.current]):
                    if monotonic() >= self._busy_since + _BUSY_SECONDS:
                        self._session.expect(frozenset())
                    continue
                if until_caught_up:
                    break
                self._idle()
                self._busy_since = monotonic()
        except ConnectionLost:
            raise
        except BaseException as error:
            # From now on it does not wait for ever. A forked child is stopping already: it must not wake its parent.
            if not self._host.stopping:
                self._host.stop()
            partitions.record_all(error)
            if not isinstance(error, (Stopped, Unavailable)):
                raise
        else:
            partitions.record_all()

    def _read(self, partition: Partition) -> int:
        """Read a page and hand it over; returns the number of messages that were read."""
        if partition.is_released or self._host.stopping:
            return 0
        messages = self._session.run(partition.page)
        before = partition.position
        end = messages[-1].global_position if messages else before
        try:
            if messages and self._together is not None:
                self._hand_over_together(self._together, partition, messages)
            elif messages:
                self._hand_over(partition, messages)
        except Unavailable as unavailable:
            if partition.position > before:
                self._patience = None
            self._wait_out(partition, unavailable.error)
        else:
            self._patience = None
            if len(messages) < self._settings.batch_size and partition.position >= end:
                self._partitions.catch_up(partition)
        partition.page = partition.page.at(partition.position + 1)
        return len(messages)

    def _wait_out(self, partition: Partition, error: Exception) -> None:
        self._session.check()
        self._patience = self._patience or Patience(self._log, "could not begin or commit a transaction")
        self._patience.warn(error)
        with suppress(Released):
            self._partitions.pause(monotonic() + self._patience.seconds(), partition)

    def _hand_over(self, partition: Partition, messages: list[Message]) -> None:
        host, partitions, failures = self._host, self._partitions, self._failures
        partitions.expect_record(partition)
        rest = iter(messages)
        try:
            while length_hint(rest) and not (host.stopping or partition.is_released):
                calls = self._calls(partition, rest)
                while failed := failures.deliver_each(partition, calls):
                    failures.handle(partition, *failed)
                partitions.keep_up()
        except Superseded as superseded:
            partitions.resolve(partition, superseded.conflict)
        except Released:
            pass

    def _calls(self, partition: Partition, messages: Iterator[Message]) -> Iterator[Call]:
        """The calls of handlers, until something is due. One that is resumed counts the message as handled."""
        # The hot loop: everything that it needs for each message is a local variable. It awaits nothing: on an event
        # loop, it runs outside of the greenlet.
        host, partitions, record_every = self._host, self._partitions, self._settings.record_every
        find, skips = self._router.find, self._router.skips
        advance = self._progress.advance if self._progress.is_shown else None
        now = monotonic()
        for message in messages:
            if host.stopping:
                return
            if skips is not None and skips(message):
                partition.skip(message)
                if advance is not None:
                    advance()
                continue
            handler = find(message.type)
            if handler is not None:
                yield handler, message, now
                self._handled += 1
            partition.position = message.global_position
            partition.last = message
            partition.unrecorded += 1
            if advance is not None:
                advance()
            now = monotonic()
            if partition.unrecorded >= record_every or now >= partitions.due:
                return

    def _hand_over_together(
        self, delivery: TransactionalDelivery, partition: Partition, messages: list[Message]
    ) -> None:
        """In transactions of several messages. If one fails, its transaction is rolled back, and each of its messages
        is read again, since handlers may have changed it, and handed over in a transaction of its own."""
        partitions = self._partitions
        while messages and not (self._host.stopping or partition.is_released):
            together = messages[: self._settings.record_every]
            if messages[0].global_position <= partition.alone_until or self._router.handler_of(messages[0]) is None:
                self._hand_over(partition, messages[:1])
                messages = messages[1:]
                continue
            until = min(partitions.share_at, monotonic() + self._settings.record_seconds)
            try:
                done, handled = delivery.deliver_together(partition, together, until)
            except Superseded as superseded:
                partitions.resolve(partition, superseded.conflict)
                return
            except (Exception, ConnectionLost) as error:
                # It is handled when its message has a transaction of its own.
                partition.alone_until = together[-1].global_position
                if isinstance(error, ConnectionLost):
                    raise
                self._session.check()
                text = f"rolled back a transaction, handles its messages one by one: {first_line(error)}"
                self._log(logging.WARNING, text, partition)
                return
            self._handled += handled
            self._progress.advance(done)
            messages = messages[done:]
            if monotonic() >= partitions.due:
                partitions.keep_up()

    def _idle(self) -> None:
        """Wait until there may be something to read."""
        partitions, session, category = self._partitions, self._session, self._settings.category
        if session.expect(self._awaited):
            return
        until = monotonic() + self._seconds_between_polls()
        while not self._host.stopping:
            left = min(until, partitions.next_due()) - monotonic()
            notified = session.wait(max(0.0, left))
            if category in notified or (notified and category == ALL):
                session.is_notified = True
                return
            if partitions.keep_up() or session.expect(self._awaited):
                return
            if monotonic() >= until:
                if session.is_notified_of(category):
                    if not self._is_anything_new():
                        until = monotonic() + _NOTIFIED_POLL_SECONDS
                        continue
                    # Its notification did not arrive.
                    session.is_notified = False
                return

    def _seconds_between_polls(self) -> float:
        if self._session.is_notified_of(self._settings.category):
            return _NOTIFIED_POLL_SECONDS
        seconds = self._settings.poll_seconds
        return min(seconds, POLL_SECONDS) if self._session.is_settling else seconds

    def _is_anything_new(self) -> bool:
        return any(self._session.run(partition.page) for partition in self._partitions.current)
