"""Hands messages to handlers: plainly, in a transaction with the position, or several in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from sqlalchemy import Connection

from messagedb_sa._clock import monotonic
from messagedb_sa._message_types import MessageTypes, registered_in
from messagedb_sa.consumer._host import Call, Failed, Host
from messagedb_sa.consumer._meter import Meter
from messagedb_sa.consumer._options import Settings
from messagedb_sa.consumer._partition import Partition
from messagedb_sa.consumer._positions import Positions
from messagedb_sa.consumer._routing import Handler, Router
from messagedb_sa.consumer._session import ConsumerSession
from messagedb_sa.consumer._transaction import commit
from messagedb_sa.errors import DuplicateMessageId
from messagedb_sa.message import Message
from messagedb_sa.store._consumer_streams import dead_letter_stream
from messagedb_sa.store._dead_letters import DeadLetterOperations
from messagedb_sa.store._execute import run_joined
from messagedb_sa.store._operation import Operation
from messagedb_sa.store._operations import Operations
from messagedb_sa.store._positions import Recorded
from messagedb_sa.store._rows import decoded

if TYPE_CHECKING:
    from messagedb_sa.tracing import Tracing


class Delivery:
    """At least once: the handler is called, and the position is recorded some time after that."""

    def __init__(
        self,
        host: Host,
        settings: Settings,
        session: ConsumerSession,
        *,
        types: MessageTypes | None,
        tracing: Tracing | None,
        meter: Meter | None,
        in_series: bool = False,
    ) -> None:
        self._host = host
        self._settings = settings
        self._session = session
        self._types = registered_in(types)
        self._tracing = tracing
        self._meter = meter
        self._operations = Operations(host.engine.dialect, joined=settings.transactional, keeps_undecodable=True)
        self._dead_letters = DeadLetterOperations(host.engine.dialect)
        self.call_each: Callable[[Iterator[Call]], Failed | None] | None = None
        """As Host.call_each; None if each message has to be delivered by itself."""
        if in_series and tracing is None and meter is None:
            self.call_each = partial(host.call_each, self._types)

    def deliver(self, partition: Partition, handler: Handler, message: Message) -> None:
        if self._tracing is None and self._meter is None:
            # Messages are decoded one by one, since each that cannot be decoded is a failure of its own.
            self._host.call(handler, decoded(self._types, message))
            return
        with self._observed(partition, message):
            self._host.call(handler, decoded(self._types, message))

    def read_again(self, message: Message) -> Message | None:
        """The message as the store has it, for another attempt: handlers and upcasters may have changed this one.

        None if it was deleted. Raises ConnectionLost.
        """
        return self._session.run(self._operations.read_again(message))

    def park(self, partition: Partition, message: Message, dead: dict[str, Any]) -> None:
        """Write the dead letter, with ``dead`` in its metadata. If it was written before, it is opened again."""
        try:
            self._session.run(self._parking(partition, message, dead))
        except DuplicateMessageId:
            self._session.run(self._parking_again(partition, message, dead))
        self._count_parked()

    def count_retry(self) -> None:
        if self._meter is not None:
            self._meter.retries()

    def _count_parked(self) -> None:
        if self._meter is not None:
            self._meter.parked()

    def _parking(self, partition: Partition, message: Message, dead: dict[str, Any]) -> Operation[None]:
        stream = dead_letter_stream(self._settings.category, self._settings.identifier)
        return self._operations.park(message, stream, dead, _id_of_dead_letter(partition, message))

    def _parking_again(self, partition: Partition, message: Message, dead: dict[str, Any]) -> Operation[int]:
        id = str(_id_of_dead_letter(partition, message))
        return self._dead_letters.parked_again(self._settings.category, id, dead)

    def _call(self, handler: Handler, message: Message, connection: Connection) -> None:
        with self._host.joined(connection) as bind:
            self._host.call(handler, decoded(self._types, message), bind)

    @contextmanager
    def _observed(self, partition: Partition, message: Message) -> Iterator[None]:
        """Around an attempt to handle the message: its span, and its metrics."""
        with (
            self._traced(partition, message),
            nullcontext() if self._meter is None else self._meter.processing(message),
        ):
            yield

    def _traced(self, partition: Partition, message: Message) -> AbstractContextManager[None]:
        if self._tracing is None:
            return nullcontext()
        return self._tracing.handling(
            message,
            category=self._settings.category,
            identifier=self._settings.identifier,
            group_member=partition.key.group_member,
        )


class TransactionalDelivery(Delivery):
    """Exactly once in effect: what the handler writes commits together with the position, or not at all."""

    def __init__(
        self,
        host: Host,
        settings: Settings,
        session: ConsumerSession,
        positions: Positions,
        router: Router,
        *,
        types: MessageTypes | None,
        tracing: Tracing | None,
        meter: Meter | None,
    ) -> None:
        super().__init__(host, settings, session, types=types, tracing=tracing, meter=meter)
        self._positions = positions
        self._router = router

    def deliver(self, partition: Partition, handler: Handler, message: Message) -> None:
        def handle(connection: Connection) -> int:
            self._call(handler, message, connection)
            return message.global_position

        with self._observed(partition, message):
            self._commit_with_position(partition, handle)

    def deliver_together(self, partition: Partition, messages: list[Message], until: float) -> tuple[int, int]:
        """Deliver messages in one transaction: at least the first, then more until a time of ``monotonic``.

        Returns how many that were, and how many of them had a handler.
        """
        done = handled = 0
        # Measured when it is committed: if it is rolled back, each message is handled again, and measured then.
        measured: list[tuple[Message, float]] = []

        def handle(connection: Connection) -> int:
            nonlocal done, handled
            for message in messages:
                handler = self._router.handler_of(message)
                if handler is not None:
                    began = monotonic()
                    with self._traced(partition, message):
                        self._call(handler, message, connection)
                    measured.append((message, monotonic() - began))
                    handled += 1
                done += 1
                if self._host.stopping or monotonic() >= until:
                    break
            return messages[done - 1].global_position

        self._commit_with_position(partition, handle)
        partition.position = partition.recorded
        if self._meter is not None:
            for message, seconds in measured:
                self._meter.processed(message, seconds)
        return done, handled

    def park(self, partition: Partition, message: Message, dead: dict[str, Any]) -> None:
        def write(operation: Operation[Any]) -> None:
            def work(connection: Connection) -> int:
                run_joined(connection, operation)
                return message.global_position

            self._commit_with_position(partition, work, calls_handlers=False)

        try:
            write(self._parking(partition, message, dead))
        except DuplicateMessageId:
            write(self._parking_again(partition, message, dead))
        self._count_parked()

    def _commit_with_position(
        self, partition: Partition, work: Callable[[Connection], int], *, calls_handlers: bool = True
    ) -> None:
        """Commit what ``work`` does, with the position that it returns. Raises as ``commit``."""

        def record(connection: Connection, position: int) -> tuple[int, Recorded]:
            operation = self._positions.recording(self._operations, partition, position)
            return position, self._positions.unless_superseded(partition, lambda: run_joined(connection, operation))

        position, recorded = commit(self._host, self._session, work, record, calls_handlers=calls_handlers)
        self._positions.recorded(partition, position, recorded)


def _id_of_dead_letter(partition: Partition, message: Message) -> UUID:
    """The same each time that this consumer parks the message, so that it is parked once."""
    return uuid5(UUID(message.id), partition.position_stream)
