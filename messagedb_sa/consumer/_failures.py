"""What happens to a message whose handler failed: it is tried again, parked as a dead letter, or stops the consumer.

A lost connection is not the failure of a message, the first time: the message is handled again. The second loss at the
same message is one. What is known about the message outlives the session, so that the retry policy and parking continue
on a new connection.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from messagedb_sa._clock import monotonic
from messagedb_sa._drivers.errors import is_caused_by_lost_connection
from messagedb_sa._error_texts import text_of
from messagedb_sa.consumer._delivery import Delivery
from messagedb_sa.consumer._host import Call, Failed
from messagedb_sa.consumer._log import ConsumerLog
from messagedb_sa.consumer._options import Settings
from messagedb_sa.consumer._partition import Partition
from messagedb_sa.consumer._partitions import Partitions
from messagedb_sa.consumer._positions import Positions
from messagedb_sa.consumer._routing import Handler
from messagedb_sa.consumer._session import ConnectionLost, ConsumerSession, ServerReadOnly
from messagedb_sa.errors import HandlerFailed
from messagedb_sa.message import Message


@dataclass(slots=True, eq=False)
class _Case:
    """What is known about a message that could not be handled so far."""

    # As the store has it, before each attempt.
    message: Message
    # How often a connection was lost while it was handled.
    losses: int = 0
    # The last failure that counts. None: it is handled again.
    error: Exception | None = None
    failures: int = 0
    # The retry policy at work, the attempt that it allows, and when that may be made.
    attempts: Any = None
    attempt: Any = None
    not_before: float = 0.0
    # Whether the policy, if there is one, has given it up.
    is_given_up: bool = False

    def fail(self, error: Exception) -> None:
        self.error = error
        self.failures += 1
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            # This reports it to the policy, and raises nothing.
            with attempt:
                raise error

    def lose(self, error: Exception) -> None:
        """A connection was lost, and ``error`` may be due to that."""
        self.losses += 1
        if self.losses > 1:
            self.fail(error)


class _Deleted(BaseException):
    """The message that failed is no longer in the store."""


class Failures:
    def __init__(
        self,
        settings: Settings,
        session: ConsumerSession,
        positions: Positions,
        partitions: Partitions,
        delivery: Delivery,
        log: ConsumerLog,
    ) -> None:
        self._settings = settings
        self._session = session
        self._positions = positions
        self._partitions = partitions
        self._delivery = delivery
        self._log = log
        # By position stream: each partition has one message in hand.
        self._cases: dict[str, _Case] = {}

    def deliver_each(self, partition: Partition, calls: Iterator[Call]) -> Failed | None:
        """Make the calls until one fails, which it returns. Raises ConnectionLost, and as Delivery.deliver.

        After a loss, it does not call the handler of a message that has failed.
        """
        if not self._cases and self._delivery.call_each is not None:
            return self._delivery.call_each(calls)
        deliver = self._deliver_again if self._cases else self._delivery.deliver
        for handler, message, _ in calls:
            try:
                deliver(partition, handler, message)
            except Exception as error:  # noqa: BLE001 - the retry policy decides
                return handler, message, error
            except ConnectionLost as lost:
                # After the handler was called, so its transaction did not commit.
                self._case(partition, message).lose(lost.error)
                raise
        return None

    def forget(self) -> None:
        self._cases.clear()

    def handle(self, partition: Partition, handler: Handler, message: Message, error: Exception) -> None:
        """Return if the message was handled or parked after all; raise HandlerFailed if the consumer must stop.

        A message that was deleted meanwhile is skipped, as the next run would do. Raises ConnectionLost, Unavailable,
        Stopped and Released too. Then the message comes again, and this continues.
        """
        try:
            self._handle(partition, handler, message, error)
        except _Deleted:
            text = "could not handle a message, which was deleted meanwhile, and skips it"
            self._log(logging.ERROR, text, partition, message, exc_info=error)
        del self._cases[partition.position_stream]

    def _handle(self, partition: Partition, handler: Handler, message: Message, error: Exception) -> None:
        case = self._case(partition, message)
        if case.error is None and self._is_handled_after_a_loss(case, partition, handler, error):
            return
        if partition.is_ahead:
            self._positions.record(partition)
        if not case.is_given_up:
            if self._settings.retry is not None and self._is_handled_by_retrying(case, partition, handler):
                return
            case.is_given_up = True
            done = "parks it" if self._settings.parks else "stops"
            self._log(
                logging.ERROR, f"could not handle a message, {done}", partition, case.message, exc_info=case.error
            )
        assert case.error is not None
        if not self._settings.parks:
            raise HandlerFailed(case.message) from case.error
        self._park(partition, case.message, case.error)

    def _case(self, partition: Partition, message: Message) -> _Case:
        case = self._cases.get(partition.position_stream)
        if case is None or case.message.id != message.id:
            case = self._cases[partition.position_stream] = _Case(message)
        case.message = message
        return case

    def _deliver_again(self, partition: Partition, handler: Handler, message: Message) -> None:
        case = self._cases.get(partition.position_stream)
        if case is not None and case.message.id == message.id and case.error is not None:
            raise case.error
        self._delivery.deliver(partition, handler, message)
        if case is not None and message.global_position >= case.message.global_position:
            del self._cases[partition.position_stream]

    # Losses

    def _is_handled_after_a_loss(self, case: _Case, partition: Partition, handler: Handler, error: Exception) -> bool:
        self._read_again(case, error)
        if not is_caused_by_lost_connection(error) or case.losses:
            case.fail(error)
            return False
        # The handler's own pool may have held connections from before a restart of the server. The error made the pool
        # drop them, so try once more.
        case.losses = 1
        try:
            self._deliver(case, partition, handler)
        except Exception as again:  # noqa: BLE001 - the retry policy decides
            self._read_again(case, again)
            case.fail(again)
            return False
        return True

    def _read_again(self, case: _Case, error: Exception) -> None:
        """Read the message as the store has it, after an attempt that may have changed it. Raises ConnectionLost: the
        handler may have failed for the same reason."""
        try:
            self._session.check()
            again = self._delivery.read_again(case.message)
        except ServerReadOnly:
            raise
        except ConnectionLost:
            case.lose(error)
            raise
        if again is None:
            raise _Deleted
        case.message = again

    def _deliver(self, case: _Case, partition: Partition, handler: Handler) -> None:
        try:
            self._delivery.deliver(partition, handler, case.message)
        except ConnectionLost as lost:
            case.lose(lost.error)
            raise

    # Retries

    def _is_handled_by_retrying(self, case: _Case, partition: Partition, handler: Handler) -> bool:
        policy: Any = self._settings.retry
        while True:
            try:
                if case.attempts is None:
                    assert case.error is not None
                    self._begin_retrying(case, partition, case.error)
                if case.attempt is None:
                    case.attempt = next(case.attempts)
            except StopIteration:
                # A retry_error_callback has dealt with it. Without one, tenacity takes an error that is false as a
                # value for none.
                return policy.retry_error_callback is not None
            except policy.retry_error_cls:
                return False
            except Exception as last:  # noqa: BLE001 - the last failure, or one of the policy itself
                case.error = last
                return False
            self._partitions.pause(case.not_before, partition)
            self._delivery.count_retry()
            try:
                self._deliver(case, partition, handler)
            except Exception as error:  # noqa: BLE001 - the policy decides
                self._read_again(case, error)
                case.fail(error)
            else:
                return True

    def _begin_retrying(self, case: _Case, partition: Partition, error: Exception) -> None:
        def pause(seconds: float) -> None:
            times = f" {case.failures} times" if case.failures > 1 else ""
            text = f"could not handle a message{times}, tries again in {seconds:.1f} s"
            self._log(logging.WARNING, text, partition, case.message, exc_info=case.error)
            case.not_before = monotonic() + seconds

        policy: Any = self._settings.retry
        case.attempts = iter(policy.copy(sleep=pause, reraise=False))
        # The first attempt was made already, and counts.
        with next(case.attempts):
            raise error

    def _park(self, partition: Partition, message: Message, error: Exception) -> None:
        dead = {
            "error": _formatted(error, traceback.format_exception_only),
            "traceback": _formatted(error, traceback.format_exception),
        }
        try:
            self._delivery.park(partition, message, dead)
        except Exception:
            # The database's encoding may lack a character of the error's.
            in_ascii = {key: text.encode("ascii", "backslashreplace").decode() for key, text in dead.items()}
            if in_ascii == dead:
                raise
            self._delivery.park(partition, message, in_ascii)


def _formatted(error: Exception, by: Callable[[Exception], list[str]]) -> str:
    try:
        text = "".join(by(error)).strip()
    except Exception:  # noqa: BLE001 - Python cannot format every error
        text = f"{type(error).__name__}: {text_of(error)}"
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
