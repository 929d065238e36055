"""Replaying: dead letters are handed to the consumer's handlers again."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from messagedb_sa._clock import monotonic
from messagedb_sa.consumer._delivery import Delivery
from messagedb_sa.consumer._failures import Failures
from messagedb_sa.consumer._host import Host
from messagedb_sa.consumer._log import ConsumerLog
from messagedb_sa.consumer._meter import meter_of
from messagedb_sa.consumer._options import Settings
from messagedb_sa.consumer._partition import Partition
from messagedb_sa.consumer._partitions import Partitions, Stopped
from messagedb_sa.consumer._positions import Positions
from messagedb_sa.consumer._routing import Handler, Router
from messagedb_sa.consumer._session import ConnectionLost, ConsumerSession, Patience, Unavailable
from messagedb_sa.consumer._transaction import commit
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message import Message
from messagedb_sa.message_types import MessageTypes
from messagedb_sa.store._batch import iterable
from messagedb_sa.store._consumer_streams import dead_letter_stream
from messagedb_sa.store._dead_letters import DeadLetter, DeadLetterOperations, DeadLetterPage
from messagedb_sa.store._execute import run_joined
from messagedb_sa.store._operations import Operations
from messagedb_sa.store._positions import Recorded

if TYPE_CHECKING:
    from messagedb_sa.metrics import Metrics
    from messagedb_sa.tracing import Tracing

_BATCH_SIZE = 100


class Replays:
    """The replays of a consumer. Each has a host and a session of its own, so the consumer itself may run meanwhile."""

    def __init__(self, settings: Settings, make: Callable[[], Replay]) -> None:
        self._settings = settings
        self._make = make
        self._running: list[Replay] = []

    def run(self, dead_letters: Iterable[DeadLetter] | None) -> int:
        """Returns the number of messages that were handled."""
        letters = None if dead_letters is None else self._checked(dead_letters)
        replay = self._make()
        self._running.append(replay)
        try:
            return replay.run(letters)
        finally:
            self._running.remove(replay)

    def stop(self) -> None:
        for replay in list(self._running):
            replay.stop()

    def abandon(self) -> None:
        for replay in self._running:
            replay.abandon()

    def _checked(self, dead_letters: Iterable[DeadLetter]) -> list[DeadLetter]:
        letters = list(iterable("dead_letters", dead_letters))
        own = self._settings.category, self._settings.identifier
        for number, letter in enumerate(letters):
            if not isinstance(letter, DeadLetter) or (letter.category, letter.identifier) != own:
                reason = "must be a DeadLetter of this consumer, as store.iter_dead_letters returns them"
                raise InvalidArgument(f"dead_letters[{number}]", letter, reason)
        return letters


class Replay:
    """One replay. Failures are those of a consumer that parks, but the dead letter exists already."""

    def __init__(
        self,
        host: Host,
        settings: Settings,
        router: Router,
        types: MessageTypes | None,
        tracing: Tracing | None,
        metrics: Metrics | None,
    ) -> None:
        settings = replace(settings, parks=True)
        self._host = host
        self._router = router
        self._log = log = ConsumerLog(settings)
        self._session = session = ConsumerSession(host, settings, log)
        self._page: DeadLetterPage | None = DeadLetterOperations(host.engine.dialect).page(
            settings.category, _BATCH_SIZE
        )
        self._page.stream_name = dead_letter_stream(settings.category, settings.identifier)
        self._delivery = delivery = _Delivery(
            host, settings, session, types=types, tracing=tracing, meter=meter_of(metrics, settings)
        )
        positions = Positions(
            settings, session, Operations(host.engine.dialect, joined=False, keeps_undecodable=True), log
        )
        partitions = Partitions(host, settings, session, positions, log)
        self._failures = Failures(settings, session, positions, partitions, delivery, log)
        # Nothing is recorded: only a consumer that reads the category does that.
        stream = positions.stream_of(settings.group_member)
        key = settings.key(settings.group_member)
        page: Any = self._page
        self._partition = Partition(key, stream, page, 0, 0, Recorded(), record_by=inf)

    def stop(self) -> None:
        self._host.stop()

    def abandon(self) -> None:
        self._host.abandon()
        self._session.abandon()

    def run(self, letters: list[DeadLetter] | None) -> int:
        todo = deque[DeadLetter]() if letters is None else deque(letters)
        if letters is not None:
            self._page = None
        with self._host.waiting():
            try:
                self._session.start()
                while True:
                    try:
                        self._replay(todo)
                        break
                    except ConnectionLost as lost:
                        if not self._session.reopen(lost, lambda: None):
                            break
            except ConnectionLost as lost:
                raise lost.error from None
            except (Stopped, Unavailable):
                # It was asked to stop.
                pass
            finally:
                self._session.close()
        self._session.refuse_child()
        self._log(logging.INFO, "replayed dead letters", handled=self._delivery.handled)
        return self._delivery.handled

    def _replay(self, todo: deque[DeadLetter]) -> None:
        patience: Patience | None = None
        while not self._host.stopping:
            if not todo:
                if self._page is None:
                    return
                todo.extend(self._session.run(self._page))
                self._page = self._page.after(None)
                continue
            handler = self._router.find(todo[0].message.type)
            try:
                if handler is not None:
                    self._hand_over(handler, todo[0])
            except Unavailable as unavailable:
                self._session.check()
                patience = patience or Patience(self._log, "could not begin or commit a transaction")
                patience.warn(unavailable.error)
                self._host.pause(patience.seconds())
            else:
                patience = None
                todo.popleft()

    def _hand_over(self, handler: Handler, letter: DeadLetter) -> None:
        delivery, failures, partition, message = self._delivery, self._failures, self._partition, letter.message
        delivery.take(letter)
        with suppress(_NotOpen):
            if failed := failures.deliver_each(partition, iter([(handler, message, monotonic())])):
                failures.handle(partition, *failed)
                delivery.conclude()
            return
        failures.forget()


class _NotOpen(BaseException):
    """The dead letter was resolved, or another replay has it."""


class _Delivery(Delivery):
    """Hands over the message of a dead letter as the store has it, and writes what became of it."""

    handled = 0
    _letter: DeadLetter
    _is_concluded: bool

    def take(self, letter: DeadLetter) -> None:
        self._letter, self._is_concluded = letter, False

    def deliver(self, partition: Partition, handler: Handler, message: Message) -> None:
        if self._settings.transactional:
            with self._observed(partition, message):
                commit(self._host, self._session, lambda connection: self._work(handler, connection), self._resolve)
        else:
            super().deliver(partition, handler, self._open(self._session.run))
            self._session.run(self._dead_letters.handled(self._letter))
        self.handled += 1
        self._is_concluded = True

    def _work(self, handler: Handler, connection: Connection) -> None:
        message = self._open(lambda operation: run_joined(connection, operation))
        self._call(handler, message, connection)

    def _resolve(self, connection: Connection, _: None) -> None:
        if not run_joined(connection, self._dead_letters.handled(self._letter)):
            # It was discarded meanwhile.
            raise _NotOpen

    def _open(self, run: Callable[[Any], DeadLetter | None]) -> Message:
        letter = run(self._dead_letters.open_letter(self._letter.category, self._letter.id))
        if letter is None:
            raise _NotOpen
        return letter.message

    def read_again(self, message: Message) -> Message:
        return self._open(self._session.run)

    def park(self, partition: Partition, message: Message, dead: dict[str, Any]) -> None:
        self._session.run(self._dead_letters.failed(self._letter, dead))
        self._is_concluded = True

    def conclude(self) -> None:
        """If it was neither handled nor failed again, a callback of the retry policy has dealt with it."""
        if not self._is_concluded:
            self.handled += self._session.run(self._dead_letters.handled(self._letter))
