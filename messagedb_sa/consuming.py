"""What a consumer does, however it waits: reads on, hands over, records its position, and heals.

Blocking code, which the consumers of both kinds run: the asynchronous one in SQLAlchemy's greenlet, as SQLAlchemy runs
its own. What differs between the two is a Host.
"""

from __future__ import annotations

import logging
import random
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from math import inf
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from uuid import UUID, uuid5

from sqlalchemy import Connection, Engine, literal_column, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError

from messagedb_sa import arguments, consumer_options, monitoring, positions
from messagedb_sa import stream_name as names
from messagedb_sa.consumer_options import Handler, Handlers
from messagedb_sa.driver import close_at_once, lost_connection, of_lost_connection
from messagedb_sa.errors import (
    DuplicateMessageId,
    GroupChanged,
    HandlerFailed,
    InvalidArgument,
    MessageDBError,
    PositionConflict,
    StreamWithoutId,
    WrongExpectedVersion,
)
from messagedb_sa.execution import run_alone, run_joined
from messagedb_sa.message import Message
from messagedb_sa.operations import ALL, HAS_NOTIFY, NO_STREAM, SETTLE_SECONDS, Operation, Operations, Page
from messagedb_sa.positions import Place
from messagedb_sa.signals import stopping as stopped_by_signals
from messagedb_sa.slots import Slots
from messagedb_sa.waiting import listen

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

T = TypeVar("T")

logger = logging.getLogger("messagedb_sa.consumer")

# How often the processes that share slots look who is there, in seconds.
_SHARE_SECONDS = 1.0
# How often one that is woken by notifications looks all the same.
_NOTIFIED_POLL_SECONDS = 5.0
# Between attempts to connect again, and between two warnings of that.
_RECONNECT_SECONDS = (0.1, 10.0)
_TELL_SECONDS = 60.0

_PING: Operation[Any] = Operation(select(literal_column("1")), {}, list)


class Host(Protocol):
    """Threads, or an event loop."""

    engine: Engine
    operations: Operations
    transactional: bool

    def call(self, handler: Handler, *arguments: Any) -> None: ...

    def joined(self, connection: Connection) -> AbstractContextManager[Any]:
        """What a handler gets to write with in the connection's transaction; flushed at the end."""

    def waiting(self) -> AbstractContextManager[None]:
        """Waits are within this."""

    def wait(self, seconds: float, connection: Connection | None) -> set[str]: ...

    def wake(self) -> None: ...


@dataclass(slots=True, eq=False)
class Lane:
    """A part of the category that is read by itself, with a position of its own: all of it, or what a member gets."""

    place: Place
    position_stream: str
    page: Page
    # The global positions of the last message that was handled, and of the last that is recorded as such.
    position: int
    recorded: int
    # Of the stream of positions.
    version: int
    record_by: float
    unrecorded: int = 0
    # Messages up to there have a transaction each.
    apart_until: int = 0
    given_up: bool = False

    @property
    def is_ahead(self) -> bool:
        return self.position > self.recorded


class _Lost(BaseException):
    """The connection is gone. No Exception, so that nobody's handling of those takes it for a handler's."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class _Superseded(BaseException):
    """Another consumer has recorded a position in a lane of ours."""

    def __init__(self, conflict: PositionConflict) -> None:
        super().__init__(conflict)
        self.conflict = conflict


class _Stopped(BaseException):
    """Asked to stop while a message waited to be tried again."""


class _GivenUp(BaseException):
    """The slot went to another process while a message of it waited to be tried again."""


class Consuming:
    """The arguments are those of Consumer, checked here."""

    def __init__(
        self,
        host: Host,
        category: str,
        handlers: Handlers,
        identifier: str | None,
        *,
        group_member: int | None = None,
        group_size: int | None = None,
        slots: int | None = None,
        streams_without_id: int | Literal["refuse", "skip"] = "refuse",
        retry: Retrying | None = None,
        on_failure: Literal["stop", "park"] = "stop",
        position: int | Literal["end"] | None = None,
        correlation: str | None = None,
        record_every: int | None = None,
        record_seconds: float = 5.0,
        batch_size: int = 1000,
        poll_seconds: float = 0.1,
    ) -> None:
        self._host = host
        # Messages are decoded one by one, since one that can't be is a failure of its own.
        self._operations = Operations(host.engine.dialect, joined=False)
        self._joined_operations = Operations(host.engine.dialect, joined=True)
        self._types = host.operations.types
        self._tracing = host.operations.tracing
        self._category = arguments.category("category", category)
        if positions.holds_positions(category):
            raise InvalidArgument(
                "category", category, "holds positions of consumers, and would hold those of this one"
            )
        self._identifier = None if identifier is None else arguments.text("identifier", identifier)
        if Place.named(identifier) != Place(identifier):
            raise InvalidArgument("identifier", identifier, "is what the member of a group is called")
        member, size = consumer_options.group(group_member, group_size, slots)
        if size is not None and category == ALL:
            raise InvalidArgument("category", category, "has no consumer groups")
        self._member, self._size, self._shares = member, size, slots is not None
        self._without_id = consumer_options.member_without_id(streams_without_id, size)
        self._find = consumer_options.finder(handlers, self._types)
        self._retry = consumer_options.retrying(retry)
        if on_failure not in ("stop", "park"):
            raise InvalidArgument("on_failure", on_failure, 'is not "stop" or "park"')
        self._parks = on_failure == "park"
        self._begin = position
        if position is not None and position != "end":
            # The first global position is 1.
            self._begin = max(1, arguments.integer("position", position, minimum=0))
        together, every = (1, 1000) if record_every is None else (record_every, record_every)
        self._record_every = arguments.integer("record_every", every, minimum=1)
        self._hands_over_together = host.transactional and together > 1
        self._correlation = None if correlation is None else arguments.category("correlation", correlation)
        if correlation is not None and category == ALL:
            raise InvalidArgument("correlation", correlation, f"is for a category, not for {ALL}")
        self._record_seconds = arguments.seconds("record_seconds", record_seconds)
        self._batch_size = arguments.integer("batch_size", batch_size, minimum=1)
        self._poll_seconds = arguments.seconds("poll_seconds", poll_seconds)

        self._name = " ".join(each for each in (category, identifier) if each)
        self._running = Lock()
        self._stopping = False
        self._connection: Connection | None = None
        self._driver: DBAPIConnection | None = None
        self._slots: Slots | None = None
        # Whether it listens, and whether that was seen to work: a pooler may swallow notifications.
        self._listens = False
        self._is_notified = False
        self._lanes: list[Lane] = []
        self._others_recorded_at = 0
        # Where a lost connection was no reason yet to take a message for one that fails.
        self._excused: tuple[str, int] | None = None
        self._due = inf
        self._share_at = inf
        self._handled = 0
        self._bar: Any = None
        self._pass_over = self._is_passed_over if self._looks_at_streams() else None
        self._attempt = self._in_transaction if host.transactional else self._call

    def stop(self) -> None:
        self._stopping = True
        self._host.wake()

    def run(self, *, until_caught_up: bool = False, progress: bool | None = False, handle_signals: bool = True) -> int:
        if not self._running.acquire(blocking=False):
            raise RuntimeError("this consumer is running already")
        try:
            with stopped_by_signals(self.stop, pass_on=until_caught_up) if handle_signals else nullcontext():
                self._run_to_the_end(until_caught_up, progress)
        finally:
            self._stopping = False
            self._running.release()
        return self._handled

    def _run_to_the_end(self, until_caught_up: bool, progress: bool | None) -> None:
        self._handled = 0
        ended_by: BaseException | None = None
        try:
            self._bar = _progress_bar(progress, self._name)
            with self._host.waiting():
                self._start()
                while True:
                    try:
                        self._consume(until_caught_up)
                        break
                    except _Lost as lost:
                        self._connect_again(lost.error)
                        if self._connection is None:
                            self._log(
                                logging.WARNING, "stops without a connection: what it handled last is not recorded"
                            )
                            break
        except _Lost as lost:
            ended_by = lost.error
            raise lost.error from None
        except BaseException as error:
            ended_by = error
            raise
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
            try:
                if self._slots is not None:
                    with suppress(Exception, _Lost):
                        self._slots.leave()
            finally:
                self._disconnect()
                self._lanes = []
                self._log_the_end(ended_by)

    def _log_the_end(self, error: BaseException | None) -> None:
        if isinstance(error, Exception):
            # A handler's failure was logged with what it was about.
            level = logging.INFO if isinstance(error, HandlerFailed) else logging.ERROR
            self._log(level, f"stopped by {_first_line(error)}", handled=self._handled)
        else:
            self._log(logging.INFO, "stopped", handled=self._handled)

    # Connecting

    def _start(self) -> None:
        self._connect()
        self._log(logging.INFO, "started")

    def _connect(self) -> None:
        """A session that lasts: it reads, records, and holds what a session holds. Not the pool's any more, which may
        give the ones it has to handlers."""
        connection = self._host.engine.connect()
        driver: Any = connection.connection.dbapi_connection
        if self._host.transactional and driver.autocommit:
            connection.close()
            raise InvalidArgument("transactional", True, "the engine is in autocommit mode, without transactions")
        self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        self._driver = driver
        try:
            self._listens = self._run(HAS_NOTIFY)
            if self._listens:
                # Before it is detached: after that SQLAlchemy does not know the driver's own connection any more.
                listen(self._connection)
        finally:
            if not self._connection.invalidated:
                self._connection.detach()
        others = (at for place, at in self._run(monitoring.recent(self._category)) if self._is_other(place))
        self._others_recorded_at = max(others, default=0)
        if self._shares:
            keys = [names.hash_64(self._position_stream(slot)) for slot in range(self._size or 0)]
            all_of_them = Place(f"{self._identifier or ''}-{self._size}-slots")
            presence = names.hash_64(positions.position_stream(self._category, all_of_them))
            self._slots = Slots(self._run, keys, presence)
            # What others may have handled meanwhile is not known.
            self._lanes = []
            self._share_at = monotonic()
        else:
            self._lanes = [self._lane(self._member, *self._lanes)]

    def _disconnect(self) -> None:
        driver, self._driver, self._connection, self._slots = self._driver, None, None, None
        if driver is not None:
            # SQLAlchemy does not close a detached connection of every asynchronous driver.
            try:
                driver.close()
            except Exception as error:  # noqa: BLE001 - it is gone in any case
                logger.debug("could not close a connection: %s", error)
            except BaseException:
                close_at_once(driver)
                raise

    def _connect_again(self, lost: BaseException) -> None:
        self._log(logging.WARNING, f"lost the connection, connecting again: {_first_line(lost)}")
        pause, longest = _RECONNECT_SECONDS
        began = monotonic()
        tell_at = began + _TELL_SECONDS
        while not self._stopping:
            self._disconnect()
            try:
                self._connect()
            except MessageDBError:
                raise
            except (Exception, _Lost) as error:  # noqa: BLE001 - drivers differ in what a failed connection is
                logger.debug("no connection yet: %s", error)
                if monotonic() >= tell_at:
                    tell_at = monotonic() + _TELL_SECONDS
                    text = f"has no connection since {monotonic() - began:.0f} s: {_first_line(error)}"
                    self._log(logging.WARNING, text)
            else:
                self._log(logging.INFO, "connected again")
                return
            self._host.wait(pause * random.uniform(0.5, 1), None)
            pause = min(2 * pause, longest)

    def _run(self, operation: Operation[T]) -> T:
        if self._connection is None:
            raise _Lost(MessageDBError("the consumer is not connected"))
        try:
            return run_alone(self._connection, operation)
        except DBAPIError as error:
            if lost_connection(error):
                raise _Lost(error) from error
            raise

    # Lanes

    def _position_stream(self, member: int | None) -> str:
        return positions.position_stream(self._category, Place(self._identifier, member, self._size))

    def _lane(self, member: int | None, before: Lane | None = None) -> Lane:
        """The lane as it is recorded; ``before``, if it is known how far it came, without going back."""
        stream = self._position_stream(member)
        last = self._run(self._operations.read_position(stream))
        recorded = 0 if last is None else _recorded_in(last)
        begins = last is None or last.global_position < self._others_recorded_at
        if begins:
            recorded = max(recorded, self._first_position() - 1)
        position = recorded if before is None else max(recorded, before.position)
        lane = Lane(
            Place(self._identifier, member, self._size),
            stream,
            self._page(member, position + 1),
            position,
            recorded,
            NO_STREAM if last is None else last.position,
            monotonic() + self._record_seconds,
        )
        if begins and self._begin is not None:
            try:
                self._record(lane)
            except _Superseded as superseded:
                raise superseded.conflict from superseded.__cause__
        self._log(logging.INFO, "reads on", lane, global_position=position + 1)
        return lane

    def _page(self, member: int | None, position: int) -> Page:
        if self._category == ALL:
            return self._operations.read_all(position, self._batch_size, False, SETTLE_SECONDS)
        size = self._size
        if member is not None and self._without_id in ("refuse", member):
            return self._operations.read_member_and_stream_without_id(
                self._category, position, self._batch_size, member, size or 0, self._correlation
            )
        return self._operations.read_category(
            self._category, position, self._batch_size, member, size, self._correlation, None
        )

    def _first_position(self) -> int:
        if self._begin == "end":
            return self._run(self._operations.category_end(self._category)) + 1
        if self._begin is not None:
            return self._begin
        others = {
            place: recorded.position
            for place, recorded in self._run(monitoring.recorded(self._category)).items()
            if self._is_other(place)
        }
        if others:
            after = [position or 0 for position in others.values()]
            waiting = self._run(monitoring.waiting(self._category, [*others], after))
            firsts = [each.first for each in waiting if each.first is not None]
            found = [place for place, position in others.items() if position is not None]
            streams = sorted(positions.position_stream(self._category, place) for place in found)
            raise GroupChanged(streams, min(firsts) if firsts else max(after) + 1)
        return 1

    def _is_other(self, place: Place) -> bool:
        """Whether it is this consumer by another number of slots or members."""
        return place.identifier == self._identifier and place.group_size != self._size

    def _share(self) -> bool:
        """Whether there are other lanes than before."""
        assert self._slots is not None
        before = self._lanes
        for slot in self._slots.share(self._give_up):
            self._log(logging.INFO, f"takes slot {slot}")
            self._lanes = [*self._lanes, self._lane(slot)]
        self._share_at = monotonic() + _SHARE_SECONDS
        return before is not self._lanes

    def _give_up(self, slot: int) -> None:
        (lane,) = (lane for lane in self._lanes if lane.place.group_member == slot)
        try:
            if lane.is_ahead:
                self._record(lane)
        except _Superseded as superseded:
            logger.debug("%s", superseded.conflict)
        self._log(logging.INFO, f"gives slot {slot} up", lane)
        self._drop(lane)

    def _drop(self, lane: Lane) -> None:
        lane.given_up = True
        self._lanes = [each for each in self._lanes if each.place != lane.place]

    # Reading and handling

    def _consume(self, until_caught_up: bool) -> None:
        try:
            self._keep_up()
            if self._bar is not None:
                self._bar.total = self._bar.n + self._count_waiting()
                self._bar.refresh()
            while not self._stopping:
                self._keep_up()
                if sum([self._read_on(lane) for lane in self._lanes]):
                    continue
                if until_caught_up:
                    break
                self._idle()
        except _Lost:
            raise
        except BaseException as error:
            self._record_all(error)
            if not isinstance(error, _Stopped):
                raise
        else:
            self._record_all()

    def _read_on(self, lane: Lane) -> int:
        """The number of messages that were read."""
        if lane.given_up or self._stopping:
            return 0
        messages = self._run(lane.page)
        if messages and self._hands_over_together:
            self._hand_over_together(lane, messages)
        elif messages:
            self._hand_over(lane, messages)
        lane.page = lane.page.at(lane.position + 1)
        return len(messages)

    def _count_waiting(self) -> int:
        places, after = [lane.place for lane in self._lanes], [lane.position for lane in self._lanes]
        return sum(each.lag for each in self._run(monitoring.waiting(self._category, places, after)))

    def _hand_over(self, lane: Lane, messages: list[Message]) -> None:
        find, attempt, pass_over, record_every = self._find, self._attempt, self._pass_over, self._record_every
        bar = self._bar
        self._due = min(self._due, lane.record_by)
        for message in messages:
            if self._stopping:
                return
            if pass_over is not None and pass_over(message):
                self._move(lane, message)
                if bar is not None:
                    bar.update()
                continue
            handler = find(message.type)
            if handler is not None:
                try:
                    try:
                        attempt(lane, handler, message)
                    except Exception as error:  # noqa: BLE001 - the policy decides
                        self._handle_failure(lane, handler, message, error)
                except _Superseded as superseded:
                    self._go_by_what_is_recorded(lane, superseded.conflict)
                    return
                except _GivenUp:
                    return
                self._handled += 1
            lane.position = message.global_position
            lane.unrecorded += 1
            if bar is not None:
                bar.update()
            if lane.unrecorded >= record_every or monotonic() >= self._due:
                self._keep_up()
                if lane.given_up:
                    return

    def _hand_over_together(self, lane: Lane, messages: list[Message]) -> None:
        """In transactions of several messages."""
        while messages and not (self._stopping or lane.given_up):
            together = messages[: self._record_every]
            if messages[0].global_position <= lane.apart_until or self._handler_of(messages[0]) is None:
                self._hand_over(lane, messages[:1])
                messages = messages[1:]
                continue
            try:
                done = self._in_one_transaction(lane, together)
            except _Superseded as superseded:
                self._go_by_what_is_recorded(lane, superseded.conflict)
                return
            except Exception as error:  # noqa: BLE001 - what becomes of it is decided when the message has its own
                self._raise_if_lost()
                lane.apart_until = together[-1].global_position
                self._log(logging.WARNING, f"takes back a transaction, and gives each message its own: {error!r}", lane)
                continue
            messages = messages[done:]
            if monotonic() >= self._due:
                self._keep_up()

    def _in_one_transaction(self, lane: Lane, messages: list[Message]) -> int:
        """How many of them it took, at least one: it ends early where something else is due."""
        done = handled = 0
        until = min(self._share_at, monotonic() + self._record_seconds)

        def handle(connection: Connection) -> int:
            nonlocal done, handled
            for message in messages:
                handler = self._handler_of(message)
                if handler is not None:
                    with self._handling(lane, message):
                        self._call_joined(handler, message, connection)
                    handled += 1
                done += 1
                if self._stopping or monotonic() >= until:
                    break
            return messages[done - 1].global_position

        self._commit_with_position(lane, handle)
        lane.position = lane.recorded
        self._handled += handled
        if self._bar is not None:
            self._bar.update(done)
        return done

    def _in_transaction(self, lane: Lane, handler: Handler, message: Message) -> None:
        def handle(connection: Connection) -> int:
            self._call_joined(handler, message, connection)
            return message.global_position

        with self._handling(lane, message):
            self._commit_with_position(lane, handle)

    def _call_joined(self, handler: Handler, message: Message, connection: Connection) -> None:
        with self._host.joined(connection) as bind:
            self._host.call(handler, self._types._decoded(message), bind)

    def _call(self, lane: Lane, handler: Handler, message: Message) -> None:
        if self._tracing is None:
            self._host.call(handler, self._types._decoded(message))
            return
        with self._handling(lane, message):
            self._host.call(handler, self._types._decoded(message))

    def _handling(self, lane: Lane, message: Message) -> AbstractContextManager[None]:
        if self._tracing is None:
            return nullcontext()
        member = lane.place.group_member
        return self._tracing.handling(
            message, category=self._category, identifier=self._identifier, group_member=member
        )

    def _commit_with_position(self, lane: Lane, work: Callable[[Connection], int]) -> None:
        """What ``work`` does, and the position that it returns."""
        with self._host.engine.connect() as connection:
            try:
                with connection.begin():
                    position = work(connection)
                    operation = self._recording(self._joined_operations, lane, position)
                    version = self._unless_superseded(lane, lambda: run_joined(connection, operation))
            except Exception as error:
                # Whether it committed, tells the position that is found when it is connected again.
                if connection.invalidated and self._excuses(lane):
                    raise _Lost(error) from error
                raise
        lane.recorded, lane.version, lane.unrecorded = position, version, 0
        lane.record_by = monotonic() + self._record_seconds

    # Failures

    def _handle_failure(self, lane: Lane, handler: Handler, message: Message, error: Exception) -> None:
        self._raise_if_lost()
        if of_lost_connection(error) and self._excuses(lane):
            # A pool of the handler's may hold what a restart left dead: it has found out now.
            try:
                self._attempt(lane, handler, message)
                return
            except Exception as again:  # noqa: BLE001 - the policy decides
                self._raise_if_lost()
                error = again
        if lane.is_ahead:
            self._record(lane)
        if self._retry is not None:
            try:
                self._try_again(lane, handler, message, error)
                return
            except Exception as last:  # noqa: BLE001 - the policy decides
                error = last
        done = "parks it" if self._parks else "stops"
        self._log(logging.ERROR, f"could not handle a message, {done}", lane, message, exc_info=error)
        if not self._parks:
            raise HandlerFailed(message) from error
        self._park(lane, message, error)

    def _raise_if_lost(self) -> None:
        """Where our connection is gone too, the handler's failure may be for want of one."""
        self._run(_PING)

    def _excuses(self, lane: Lane) -> bool:
        """Whether it is the first connection that was lost at this message."""
        at = lane.position_stream, lane.position
        is_first, self._excused = self._excused != at, at
        return is_first

    def _try_again(self, lane: Lane, handler: Handler, message: Message, error: Exception) -> None:
        # The first attempt was made: it counts as one.
        failed: list[Exception] = []

        def attempt() -> None:
            try:
                if not failed:
                    raise error
                self._attempt(lane, handler, message)
            except Exception as again:
                failed.append(again)
                if again is not error:
                    self._raise_if_lost()
                raise

        def pause(seconds: float) -> None:
            text = f"failed {len(failed)} times" if len(failed) > 1 else "failed"
            self._log(logging.WARNING, f"{text}, tries again in {seconds:.1f} s", lane, message, exc_info=failed[-1])
            self._pause(seconds, lane)

        def retry(state: RetryCallState) -> bool:
            # What is no Exception is not the handler's: a cancelled task, and what we have to tell ourselves.
            outcome = state.outcome.exception() if state.outcome is not None else None
            return (outcome is None or isinstance(outcome, Exception)) and policy.retry(state)

        policy = self._retry
        policy.copy(sleep=pause, reraise=True, retry=retry)(attempt)

    def _pause(self, seconds: float, lane: Lane) -> None:
        """What is due to other lanes is done meanwhile; and this one may be given up."""
        until = monotonic() + seconds
        while not self._stopping:
            if lane.given_up:
                raise _GivenUp
            now = monotonic()
            if now >= until:
                return
            self._host.wait(min(until, self._due) - now, None)
            if monotonic() >= self._due:
                self._keep_up()
        raise _Stopped

    def _park(self, lane: Lane, message: Message, error: Exception) -> None:
        metadata = message.metadata if isinstance(message.metadata, dict) else {}
        dead = {
            "error": _storable("".join(traceback.format_exception_only(error)).strip()),
            "traceback": _storable("".join(traceback.format_exception(error))),
            "metadata": message.metadata,
        }
        parameters = (
            positions.dead_stream(self._category, self._identifier),
            message.type,
            message.data,
            {
                **metadata,
                "causationMessageStreamName": message.stream_name,
                "causationMessagePosition": message.position,
                "causationMessageGlobalPosition": message.global_position,
                "dead": dead,
            },
            None,
            # The same whenever it is parked by this consumer, so that it is parked once.
            uuid5(UUID(message.id), lane.position_stream),
        )
        if self._host.transactional:
            parking = self._joined_operations.write(*parameters)

            def park(connection: Connection) -> int:
                run_joined(connection, parking)
                return message.global_position

            try:
                self._commit_with_position(lane, park)
            except DuplicateMessageId:
                self._commit_with_position(lane, lambda _: message.global_position)
            return
        with suppress(DuplicateMessageId):
            self._run(self._operations.write(*parameters))

    # Positions

    def _recording(self, operations: Operations, lane: Lane, position: int) -> Operation[int]:
        data = {"position": position}
        return operations.write(lane.position_stream, positions.RECORDED, data, None, lane.version, None)

    def _unless_superseded(self, lane: Lane, write: Callable[[], int]) -> int:
        try:
            return write()
        except WrongExpectedVersion as error:
            actual = error.actual_version
            if actual is None:
                # On a higher isolation level it may be any transaction that came in the way.
                last = self._run(self._operations.read_position(lane.position_stream))
                actual = NO_STREAM if last is None else last.position
                if actual == lane.version:
                    raise
            raise _Superseded(PositionConflict(lane.position_stream, lane.version, actual)) from error

    def _record(self, lane: Lane) -> None:
        operation = self._recording(self._operations, lane, lane.position)
        lane.version = self._unless_superseded(lane, lambda: self._run(operation))
        lane.recorded, lane.unrecorded = lane.position, 0
        lane.record_by = monotonic() + self._record_seconds
        self._log(logging.DEBUG, "recorded its position", lane, global_position=lane.position)

    def _record_all(self, error: BaseException | None = None) -> None:
        """Where an error is on its way, a second one must not hide it."""
        for lane in self._lanes:
            try:
                if lane.is_ahead and self._is_cut_off() and not self._shares:
                    self._record_on_another_connection(lane)
                elif lane.is_ahead:
                    self._record(lane)
            except _Superseded as superseded:
                if error is None and not self._shares:
                    raise superseded.conflict from superseded.__cause__
                self._log(logging.WARNING, f"could not record its position: {superseded.conflict}", lane)
            except (Exception, _Lost) as failed:
                if error is None:
                    raise
                self._log(logging.WARNING, f"could not record its position: {failed}", lane)

    def _is_cut_off(self) -> bool:
        """Whether a task was cancelled in the middle of a statement, which costs the connection."""
        return self._connection is not None and self._connection.invalidated

    def _record_on_another_connection(self, lane: Lane) -> None:
        with self._host.engine.connect() as self._connection:
            self._record(lane)

    def _go_by_what_is_recorded(self, lane: Lane, conflict: PositionConflict) -> None:
        if not self._shares:
            # It records no more.
            self._drop(lane)
            raise conflict
        # The slot is ours, as its lock tells: somebody who had lost it without knowing went on.
        self._log(logging.WARNING, f"goes by what another consumer recorded: {conflict}", lane)
        self._drop(lane)
        self._lanes = [*self._lanes, self._lane(lane.place.group_member)]

    def _move(self, lane: Lane, message: Message) -> None:
        """Past a message that is no reason to record a position."""
        if not lane.is_ahead:
            lane.recorded = message.global_position
        lane.position = message.global_position

    def _keep_up(self) -> bool:
        """Do what is due; whether there are other lanes than before."""
        now = monotonic()
        before = self._lanes
        for lane in before:
            if lane.is_ahead and (now >= lane.record_by or lane.unrecorded >= self._record_every):
                try:
                    self._record(lane)
                except _Superseded as superseded:
                    self._go_by_what_is_recorded(lane, superseded.conflict)
        if now >= self._share_at:
            self._share()
        ahead = (lane.record_by for lane in self._lanes if lane.is_ahead)
        self._due = min(self._share_at, now + self._record_seconds, *ahead)
        return before is not self._lanes

    def _idle(self) -> None:
        """Wait until there may be something to read."""
        until = monotonic() + (_NOTIFIED_POLL_SECONDS if self._is_notified else self._poll_seconds)
        while not self._stopping:
            ahead = (lane.record_by for lane in self._lanes if lane.is_ahead)
            left = min(until, self._share_at, *ahead) - monotonic()
            heard = self._wait(max(0.0, left), self._connection if self._listens else None)
            if self._category in heard or (heard and self._category == ALL):
                self._is_notified = True
                return
            if self._keep_up():
                return
            if monotonic() >= until:
                # Should there be something now, it came in silence.
                self._is_notified = self._is_notified and not self._anything()
                return

    def _anything(self) -> bool:
        return any(self._run(lane.page) for lane in self._lanes)

    def _wait(self, seconds: float, connection: Connection | None) -> set[str]:
        try:
            return self._host.wait(seconds, connection)
        except DBAPIError as error:
            raise _Lost(error) from error

    # Messages that are no business of handlers

    def _looks_at_streams(self) -> bool:
        return self._category == ALL or self._without_id == "refuse"

    def _handler_of(self, message: Message) -> Handler | None:
        if self._pass_over is not None and self._pass_over(message):
            return None
        return self._find(message.type)

    def _is_passed_over(self, message: Message) -> bool:
        if self._category == ALL:
            # Recording a position would otherwise be a reason to record one, and parking a message to park it again.
            if positions.holds_positions(message.category):
                return message.type == positions.RECORDED
            return positions.holds_dead(message.category)
        if names.is_category(message.stream_name):
            raise StreamWithoutId(message)
        return False

    def _log(
        self,
        level: int,
        text: str,
        lane: Lane | None = None,
        message: Message | None = None,
        exc_info: BaseException | None = None,
        **fields: Any,
    ) -> None:
        if not logger.isEnabledFor(level):
            return
        fields |= {"category": self._category, "identifier": self._identifier}
        if lane is not None and lane.place.group_size is not None:
            fields |= {"group_member": lane.place.group_member, "group_size": lane.place.group_size}
        if message is not None:
            fields |= {
                "stream_name": message.stream_name,
                "position": message.position,
                "global_position": message.global_position,
                "message_type": message.type,
                "message_id": message.id,
            }
        shown = ", ".join(f"{name} {value}" for name, value in fields.items() if value is not None)
        logger.log(level, "consumer %s (%s)", text, shown, extra=fields, exc_info=exc_info)


def _storable(text: str) -> str:
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def _first_line(error: BaseException) -> str:
    """Without the statement and the parameters that SQLAlchemy adds."""
    shown = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return f"{type(error).__name__}: {str(shown).strip().partition(chr(10))[0]}"


def _recorded_in(message: Message) -> int:
    data = message.data
    position = data.get("position") if isinstance(data, dict) else None
    if not isinstance(position, int):
        raise MessageDBError(
            f"position {message.position} of stream {message.stream_name!r} holds no position of a consumer: {data!r}"
        )
    return position


def _progress_bar(wanted: bool | None, name: str) -> Any:
    """None where none is wanted, or where nobody would see it, or by default where there is nothing to draw it with."""
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        if wanted is None:
            return None
        raise InvalidArgument("progress", wanted, 'needs tqdm: pip install "messagedb-sa[progress]"') from None
    return tqdm(desc=name, unit=" messages", dynamic_ncols=True)
