"""Whether consumers are well: a check for programs, and an ASGI application for the probes of a platform."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import Connection, Engine

from messagedb_sa import _arguments as arguments
from messagedb_sa._attempts import Attempt, Attempts, in_thread
from messagedb_sa.consumer import AsyncConsumer, Consumer, ConsumerState
from messagedb_sa.consumer._waiting import call_soon
from messagedb_sa.errors import InvalidArgument, MessageDBError
from messagedb_sa.store import AsyncStore, ConsumerStatus, Store

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = [
    "ASGIApplication",
    "Finding",
    "Kind",
    "async_check",
    "check",
    "endpoint",
]

Kind: TypeAlias = Literal["failed", "stuck", "not_running", "not_connected", "behind", "missing", "no_answer"]

ASGIApplication: TypeAlias = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]
"""What ``endpoint`` returns: an application of the interface ASGI."""

MAX_AGE = 60.0
STUCK_SECONDS = 300.0
# Less than the second that Kubernetes gives a probe by default.
_DATABASE_SECONDS = 0.8
# The same limit as that of a consumer's connection.
_UNANSWERED_SECONDS = 30.0
_NEEDS_RESTART = ("failed", "stuck")


class Finding(NamedTuple):
    """What is wrong with a consumer, or with the database.

    ``kind`` is one of these:

    - "failed": its ``run`` has raised an error, and nothing runs it again.
    - "stuck": its handler, or the event loop that it waits on, takes longer than ``stuck_seconds``.
    - "not_running": it was not run yet, or its ``run`` has returned.
    - "not_connected": it has no connection, or its connection does not answer.
    - "behind": a message after its recorded position is older than ``max_age``.
    - "missing": it has recorded no position, and a message of its category is older than ``max_age``.
    - "no_answer": the database did not answer in time, or with an error. Then there is no consumer.

    ``text`` is for people. It has the names of types, streams and errors, but not their data.
    """

    kind: Kind
    category: str | None
    identifier: str | None
    group_member: int | None
    text: str

    @property
    def needs_restart(self) -> bool:
        """Whether only another start of the process helps. If the database is away, it does not."""
        return self.kind in _NEEDS_RESTART


def check(
    consumers: Iterable[Consumer | AsyncConsumer] = (),
    *,
    store: Store | None = None,
    expected: Iterable[tuple[str, str | None]] = (),
    max_age: float | None = MAX_AGE,
    stuck_seconds: float = STUCK_SECONDS,
) -> list[Finding]:
    """What is wrong; an empty list if all is well.

    ``consumers`` are those of this process. ``expected`` are the categories and the identifiers of those that may run
    anywhere: all members or slots of each are looked at. One that has recorded nothing is missing only when there is
    something to read.

    Without ``store``, the database is not asked, and only what this process knows about its own ``consumers`` counts.
    With it, they and the expected ones must not be behind: the first message after a recorded position must not be
    older than ``max_age``, in seconds, by the clock of this machine. A consumer records its position with a delay, so
    ``max_age`` must be more than its ``record_seconds`` and the time of its slowest handler. None: any age is fine. Of
    slots, those count that this process has now, so that one that stands by is well; the age of a consumer of this
    process with a ``correlation`` is not known, and does not count.

    ``stuck_seconds``: how long a handler may take.

    It waits for the database as long as the driver does, which may be without a limit. ``endpoint`` has one.
    """
    wanted = _Wanted(consumers, expected, max_age, stuck_seconds)
    states = wanted.states()
    findings = wanted.of_process(states)
    if store is not None:
        if not isinstance(store, Store):
            raise InvalidArgument("store", store, "must be a Store; for an AsyncStore, await async_check")
        try:
            findings += wanted.of_store(states, store)
        except Exception as error:  # noqa: BLE001 - drivers report failed connections differently
            findings.append(_could_not_ask(error))
    return findings


async def async_check(
    consumers: Iterable[Consumer | AsyncConsumer] = (),
    *,
    store: AsyncStore | None = None,
    expected: Iterable[tuple[str, str | None]] = (),
    max_age: float | None = MAX_AGE,
    stuck_seconds: float = STUCK_SECONDS,
) -> list[Finding]:
    """As ``check``, with an AsyncStore."""
    wanted = _Wanted(consumers, expected, max_age, stuck_seconds)
    states = wanted.states()
    findings = wanted.of_process(states)
    if store is not None:
        if not isinstance(store, AsyncStore) or type(store.bind).__name__ != "AsyncEngine":
            raise InvalidArgument("store", store, "must be an AsyncStore on an AsyncEngine; for a Store, call check")
        engine: Any = store.bind
        try:
            async with engine.connect() as connection:
                findings += await connection.run_sync(lambda bind: wanted.of_store(states, Store(bind)))
        except Exception as error:  # noqa: BLE001 - drivers report failed connections differently
            findings.append(_could_not_ask(error))
    return findings


def endpoint(
    consumers: Iterable[Consumer | AsyncConsumer] = (),
    *,
    store: Store | AsyncStore | None = None,
    expected: Iterable[tuple[str, str | None]] = (),
    max_age: float | None = MAX_AGE,
    stuck_seconds: float = STUCK_SECONDS,
    database_seconds: float = _DATABASE_SECONDS,
) -> ASGIApplication:
    """An ASGI application with two pages for probes: ``/live`` and ``/ready``, below any path where it is mounted.

    ``/live`` answers 503 if only a restart of this process helps (``Finding.needs_restart``), otherwise 200. It never
    asks the database. ``/ready`` answers 503 if anything is found, as ``check`` finds it. Both answer with JSON: ``ok``
    and the ``findings``.

    The database is asked once a second at most, however many probes come, and never twice at the same time. If it does
    not answer within ``database_seconds``, it is not ready. That should be less than the probe's own timeout. ``store``
    must be on an Engine or AsyncEngine; a Store is asked in a thread of its own, an AsyncStore on the event loop of the
    application, which must be that of its other users.
    """
    return _Endpoint(
        _Wanted(consumers, expected, max_age, stuck_seconds),
        store,
        arguments.seconds("database_seconds", database_seconds),
    )


class _Wanted:
    """The consumers that must be well. No I/O."""

    def __init__(self, consumers: object, expected: object, max_age: float | None, stuck_seconds: float) -> None:
        self._consumers: list[Consumer | AsyncConsumer] = []
        for number, consumer in enumerate(_items("consumers", consumers)):
            if not isinstance(consumer, (Consumer, AsyncConsumer)):
                raise InvalidArgument(f"consumers[{number}]", consumer, "must be a Consumer or an AsyncConsumer")
            self._consumers.append(consumer)
        self._expected: set[tuple[str, str | None]] = set()
        for number, each in enumerate(_items("expected", expected)):
            at = f"expected[{number}]"
            if not (isinstance(each, (tuple, list)) and len(each) == 2):
                raise InvalidArgument(at, each, 'must be (category, identifier), such as ("account", "greeter")')
            category = arguments.category(f"{at}.category", each[0])
            self._expected.add((category, None if each[1] is None else arguments.text(f"{at}.identifier", each[1])))
        self._max_age = None if max_age is None else arguments.seconds("max_age", max_age)
        self._stuck_seconds = arguments.seconds("stuck_seconds", stuck_seconds)

    def states(self) -> list[ConsumerState]:
        return [consumer.state() for consumer in self._consumers]

    def of_process(self, states: Iterable[ConsumerState]) -> list[Finding]:
        """What this process knows about its own consumers."""
        return [finding for state in states for finding in self._of_state(state)]

    def of_store(self, states: Iterable[ConsumerState], store: Store) -> list[Finding]:
        """What the recorded positions tell. Raises if the database cannot be asked."""
        judged = [state for state in states if _is_judged_by_age(state)]
        asked: dict[str, set[str | None]] = {}
        for category, identifier in {*self._expected, *((state.category, state.identifier) for state in judged)}:
            asked.setdefault(category, set()).add(identifier)
        if not asked:
            store.version()
        findings: list[Finding] = []
        for category in sorted(asked):
            by_identifier: dict[str | None, list[ConsumerStatus]] = {}
            for status in store.consumers(category, lag=False, identifiers=asked[category]):
                by_identifier.setdefault(status.identifier, []).append(status)
            for identifier, statuses in by_identifier.items():
                if (category, identifier) in self._expected:
                    counted = _newest_group(statuses)
                else:
                    own = [state for state in judged if (state.category, state.identifier) == (category, identifier)]
                    counted = [status for status in statuses if any(_has(state, status) for state in own)]
                findings += [finding for status in counted if (finding := self._of_status(status))]
        return findings

    def _of_state(self, state: ConsumerState) -> list[Finding]:
        def found(kind: Kind, text: str) -> list[Finding]:
            return [Finding(kind, state.category, state.identifier, None, text)]

        if state.status == "failed":
            # Without the text of the error, which may hold anything.
            return found("failed", f"it was ended by {(state.error or '').partition(':')[0]}, and is not running")
        if not state.is_running:
            return found("not_running", "it has not been run" if state.status == "new" else "it has stopped")
        if state.status == "handling" and state.seconds > self._stuck_seconds and state.message is not None:
            message = state.message
            text = (
                f"its handler has had message {message.global_position}, {message.type} of {message.stream_name}, for "
                f"{state.seconds:.0f} s"
            )
            return found("stuck", text)
        if state.overdue_seconds > self._stuck_seconds:
            return found("stuck", f"its event loop or its process has had no time for {state.overdue_seconds:.0f} s")
        if state.status == "connecting":
            return found("not_connected", f"it has had no connection for {state.seconds:.0f} s")
        if state.status == "querying" and state.seconds > _UNANSWERED_SECONDS:
            return found("not_connected", f"the database has not answered it for {state.seconds:.0f} s")
        return []

    def _of_status(self, status: ConsumerStatus) -> Finding | None:
        if status.waiting_since is None:
            return None
        age = (datetime.now(timezone.utc) - status.waiting_since).total_seconds()
        if age <= (self._max_age or 0):
            return None
        text = f"a message has waited for {age:.0f} s"
        which = status.category, status.identifier, status.group_member
        if status.position is None and status.group_size is None:
            return Finding("missing", *which, f"it has recorded no position, and {text}")
        return None if self._max_age is None else Finding("behind", *which, text)


def _items(argument: str, value: object) -> Iterable[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise InvalidArgument(argument, value, "must be a list, also for one consumer")
    return value


def _is_judged_by_age(state: ConsumerState) -> bool:
    """Not one that stands by. And with a correlation, the messages that it does not read would seem to wait."""
    stands_by = state.group_size is not None and not state.members
    return state.is_running and state.correlation is None and not stands_by


def _has(state: ConsumerState, status: ConsumerStatus) -> bool:
    if status.group_size is None and status.position is None:
        # Nobody with this identifier has recorded anything.
        return True
    is_member = status.group_member is None or status.group_member in state.members
    return status.group_size == state.group_size and is_member


def _newest_group(statuses: list[ConsumerStatus]) -> list[ConsumerStatus]:
    """The members or slots of the number that recorded last: positions of another number stay until forgotten."""
    recorded = [status for status in statuses if status.recorded_at is not None]
    if not recorded:
        return statuses
    size = max(recorded, key=lambda status: status.recorded_at or datetime.min).group_size
    return [status for status in statuses if status.group_size == size]


# ---- the endpoint


class _Endpoint:
    def __init__(self, wanted: _Wanted, store: Store | AsyncStore | None, database_seconds: float) -> None:
        if store is not None:
            if not isinstance(store, (Store, AsyncStore)):
                raise InvalidArgument("store", store, "must be a Store or an AsyncStore")
            if not isinstance(store.bind, Engine) and type(store.bind).__name__ != "AsyncEngine":
                raise InvalidArgument(
                    "store", store, "must be on an Engine or AsyncEngine, since probes come at any time"
                )
        self._wanted = wanted
        self._seconds = database_seconds
        self._in_tasks = isinstance(store, AsyncStore)
        self._attempts: Attempts[list[Finding]] | None = None
        if store is not None:
            engine: Any = store.bind
            start = partial(self._in_task, engine) if self._in_tasks else in_thread(engine, self._ask)
            self._attempts = Attempts(start)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _live_on(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        elif scope["method"] not in ("GET", "HEAD"):
            await _answer(scope, send, 405, {"detail": "the method must be GET or HEAD"}, [(b"allow", b"GET, HEAD")])
        else:
            page = scope["path"].rstrip("/").rpartition("/")[2]
            if page == "live":
                findings = self._wanted.of_process(self._wanted.states())
                await _report(scope, send, [each for each in findings if each.needs_restart])
            elif page == "ready":
                findings = self._wanted.of_process(self._wanted.states())
                await _report(scope, send, findings + await self._of_store())
            else:
                await _answer(scope, send, 404, {"detail": "the pages are /live and /ready"})

    async def _of_store(self) -> list[Finding]:
        if self._attempts is None:
            return []
        loop, answered = asyncio.get_running_loop(), asyncio.Event()
        attempt = self._attempts.current(loop if self._in_tasks else None)
        attempt.answer.add_done_callback(lambda _: call_soon(loop, answered.set))
        try:
            await asyncio.wait_for(answered.wait(), self._seconds)
            return attempt.answer.result()
        except asyncio.TimeoutError:
            attempt.end_if_hanging()
            return [_no_answer(f"the database has not answered for {attempt.unanswered_seconds():.1f} s")]
        except Exception as error:  # noqa: BLE001 - drivers report failed connections differently
            return [_could_not_ask(error)]

    def _ask(self, connection: Connection) -> list[Finding]:
        return self._wanted.of_store(self._wanted.states(), Store(connection))

    def _in_task(self, engine: AsyncEngine, attempt: Attempt[list[Finding]]) -> None:
        async def run() -> None:
            try:
                async with engine.connect() as connection:
                    answer = await connection.run_sync(lambda bind: self._ask(attempt.on(bind)))
            except Exception as error:  # noqa: BLE001 - raised again where the answer is wanted
                attempt.fail(error)
            except BaseException:
                # The event loop ends.
                attempt.fail(MessageDBError("its event loop has ended"))
                raise
            else:
                attempt.end(answer)

        # Otherwise nothing refers to the task.
        attempt.task = asyncio.ensure_future(run())


def _no_answer(text: str) -> Finding:
    return Finding("no_answer", None, None, None, text)


def _could_not_ask(error: Exception) -> Finding:
    return _no_answer(f"the database could not be asked: {type(error).__name__}")


async def _report(scope: Any, send: Any, findings: list[Finding]) -> None:
    body = {"ok": not findings, "findings": [finding._asdict() for finding in findings]}
    await _answer(scope, send, 503 if findings else 200, body)


async def _answer(
    scope: Any, send: Any, status: int, body: object, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    content = json.dumps(body).encode()
    own = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})


async def _live_on(receive: Any, send: Any) -> None:
    """The application's lifespan, for servers that have no other application: there is nothing to begin or to end."""
    while True:
        phase = (await receive())["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{phase}.complete"})
        if phase == "shutdown":
            return
