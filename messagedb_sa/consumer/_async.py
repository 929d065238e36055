"""The asynchronous consumer, which waits on an event loop, and awaits its handlers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from sqlalchemy.util import greenlet_spawn

from messagedb_sa._forks import PerProcess
from messagedb_sa.consumer._event_loop_host import EventLoopHost
from messagedb_sa.consumer._loop import Loop
from messagedb_sa.consumer._options import (
    BATCH_SIZE,
    POLL_SECONDS,
    RECORD_SECONDS,
    Begin,
    ConsumerOptions,
    OnFailure,
    PositionsHome,
    Settings,
    StreamsWithoutId,
    refuse_unknown,
    session_factory,
    unfit_store,
)
from messagedb_sa.consumer._replay import Replay, Replays
from messagedb_sa.consumer._routing import AnyHandlers, Router
from messagedb_sa.consumer._state import ConsumerState
from messagedb_sa.message import Message
from messagedb_sa.store import AsyncStore
from messagedb_sa.store._dead_letters import DeadLetter

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker
    from tenacity import Retrying
    from typing_extensions import Unpack

_Plain: TypeAlias = "Callable[[Message], object]"
_OnConnection: TypeAlias = "Callable[[Message, AsyncConnection], object]"
_OnSession: TypeAlias = "Callable[[Message, Any], object]"


class AsyncConsumer:
    """Reads a category from where this consumer stopped, and hands each message to its handler.

    ``handlers`` is a function for all messages, or maps message types, or classes of the store's ``types``, to
    functions, coroutine functions or plain ones, as a dict or Handlers; messages of other types are skipped. Handlers
    are called one after another, in the order of the global positions. ``category`` may be ``$all``: the whole store
    without gaps (see ``Store.read``), but not the positions and dead letters of consumers.

    **At least once**, by default: the handler gets the message. After a crash, messages since the last recorded
    position are handled again. **Exactly once in effect**, with ``transactional=True``: the handler gets the message
    and an AsyncConnection in a transaction. What it writes there is committed together with the position, or not at
    all. With ``transactional=async_sessionmaker(...)``, or the class AsyncSession, it gets such an AsyncSession
    instead. It must not commit.

    ``identifier`` distinguishes the consumers of a category. A position in a stream has the same form as Eventide's:
    for the category ``account`` it is in ``account:position-identifier``. If two consumers run at the same time
    with one identifier, and without slots, one of them raises PositionConflict.

    If a handler raises, the consumer stops with HandlerFailed; no message is skipped. If the connection is lost, the
    consumer connects again, after growing pauses of up to 10 seconds, and handles the message in hand again. While it
    runs, it has a connection of its own that does not count in the pool.

    If you cancel the task that runs it, the message in hand is not finished; the next run handles it again.

    Options:

    - ``group_member``, from 0, of ``group_size``: read only the streams of this member of a consumer group, as Message
      DB divides them, with a position of its own. None: no group.
    - ``slots``, 1 to 32767: divide the category into this many parts, and share them with the other processes that have
      the same identifier; each part has one process at a time. At most that many processes have work, others stand by.
      The number must stay the same, since each slot has a position: with another number, or another ``group_size``, the
      consumer raises GroupChanged, which tells you which ``position`` to pass. None: not shared.
    - ``streams_without_id``: Message DB gives streams without an id to no member. "refuse", the default, raises
      StreamWithoutId at the first such message; "skip" skips them; a number is the member or slot that handles them.
    - ``retry``: a tenacity.Retrying (extra ``retry``) that decides whether, when and how often a message is tried again
      after its handler raised. None: never.
    - ``on_failure``: what to do after the last attempt. "stop", the default, raises HandlerFailed. "park" copies the
      message, as it is stored, to the stream ``account:dead-identifier`` and continues. The copy has more
      keys in its metadata: ``causationMessageStreamName``, ``causationMessagePosition``,
      ``causationMessageGlobalPosition``, and ``dead``: ``error``, ``traceback``, and the message's ``id``, ``time`` and
      ``metadata``. ``replay`` hands it to the handler again.
    - ``position``: the global position to begin at, inclusive, if none is recorded; "end" is after the last message. It
      is recorded at once, so later runs ignore this option. None: the beginning.
    - ``positions``: where the position is recorded. "stream" is the stream that Eventide uses, a message each time.
      "table" is a row of the table consumer_positions, updated in place, which the revision messagedb_0004 makes. None:
      the table for transactional consumers if it is there and the role may write to it, else the stream. A consumer
      takes its position along when it changes from one to the other.
    - ``correlation``: a category; read only messages whose metadata's correlationStreamName is in it. None: all.
    - ``record_every``, from 1, and ``record_seconds``: record the position after that many messages, or that long after
      the last time, whichever comes first. By default 1000 messages and 5 seconds. It is recorded too when there is
      nothing more to read, up to 20 times a second. For a transactional consumer, these
      messages are one transaction, of at most ``batch_size``; by default each message has a transaction. If one of
      several fails, their transaction is rolled back, and they are handled one by one.
    - ``batch_size``, from 1: the number of messages per read. By default 1000.
    - ``poll_seconds``: the pause after an empty read. By default 0.1. If notifications are on (see install.upgrade),
      the consumer is woken within milliseconds, and polls only every 5 seconds.
    """

    category: str
    """The category that it reads, or ``$all``."""

    identifier: str | None
    """What distinguishes it from the other consumers of the category."""

    # So that the class has the attributes too, for mocks that are made of it.
    __slots__ = ("__dict__", "__weakref__", "category", "identifier")

    @overload
    def __init__(
        self,
        store: AsyncStore,
        category: str,
        handlers: _Plain | Mapping[Any, _Plain],
        identifier: str | None = None,
        *,
        transactional: Literal[False] = False,
        **options: Unpack[ConsumerOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        store: AsyncStore,
        category: str,
        handlers: _OnConnection | Mapping[Any, _OnConnection],
        identifier: str | None = None,
        *,
        transactional: Literal[True],
        **options: Unpack[ConsumerOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        store: AsyncStore,
        category: str,
        handlers: _OnSession | Mapping[Any, _OnSession],
        identifier: str | None = None,
        *,
        transactional: async_sessionmaker[Any] | type[AsyncSession],
        **options: Unpack[ConsumerOptions],
    ) -> None: ...

    def __init__(
        self,
        store: AsyncStore,
        category: str,
        handlers: AnyHandlers,
        identifier: str | None = None,
        *,
        transactional: bool | async_sessionmaker[Any] | type[AsyncSession] = False,
        group_member: int | None = None,
        group_size: int | None = None,
        slots: int | None = None,
        streams_without_id: StreamsWithoutId = "refuse",
        retry: Retrying | None = None,
        on_failure: OnFailure = "stop",
        position: Begin = None,
        positions: PositionsHome = None,
        correlation: str | None = None,
        record_every: int | None = None,
        record_seconds: float = RECORD_SECONDS,
        batch_size: int = BATCH_SIZE,
        poll_seconds: float = POLL_SECONDS,
        **unknown: object,
    ) -> None:
        refuse_unknown(unknown)
        if not isinstance(store, AsyncStore):
            raise unfit_store(store, "AsyncConsumer")
        # There is an AsyncStore, so this can be imported.
        from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

        if not isinstance(store.bind, AsyncEngine):
            raise unfit_store(store, "AsyncConsumer")
        settings = Settings.checked(
            category,
            identifier,
            transactional=transactional is not False,
            group_member=group_member,
            group_size=group_size,
            slots=slots,
            streams_without_id=streams_without_id,
            retry=retry,
            on_failure=on_failure,
            position=position,
            positions=positions,
            correlation=correlation,
            record_every=record_every,
            record_seconds=record_seconds,
            batch_size=batch_size,
            poll_seconds=poll_seconds,
        )
        router = Router(settings, handlers, store.types, awaited=True)
        factory = session_factory(transactional, async_sessionmaker, AsyncSession)

        def loop() -> Loop:
            return Loop(
                EventLoopHost(store.engine, factory), settings, router, store.types, store.tracing, store.metrics
            )

        def replay() -> Replay:
            return Replay(
                EventLoopHost(store.engine, factory), settings, router, store.types, store.tracing, store.metrics
            )

        self._loop = PerProcess(loop, Loop.abandon)
        self._replays = PerProcess(lambda: Replays(settings, replay), Replays.abandon)
        self.category = settings.category
        self.identifier = settings.identifier
        self._repr = f"<{type(self).__name__} {settings.described} on {store!r}>"

    def __repr__(self) -> str:
        return self._repr

    async def run(self, *, handle_signals: bool = True) -> None:
        """Handle messages until ``stop``, or until SIGTERM or SIGINT. Then finish the message in hand, record the
        position, and return.

        Signals are handled while it runs, in the main thread only. The first one stops all consumers that run there;
        when they have finished, a handler that the application had set is called too. A second one goes to the handler
        that was set before, or ends the program if a driver's C library keeps Python from calling that. With
        ``handle_signals=False``, it does not handle signals. If the first connection fails, ``run`` raises; if the
        connection is lost later, it connects again.
        """
        await self._run(handle_signals=handle_signals)

    async def run_until_caught_up(self, *, progress: bool | None = None, handle_signals: bool = True) -> int:
        """As ``run``, but return when there is nothing more to read; returns the number of messages that were handled.

        With slots, it reads only the slots that it gets at the start. With ``$all``, it stops before the first gap. If
        a signal stops it, the position is recorded, and then the signal is raised again.

        ``progress``: show a progress bar on standard error, drawn by tqdm (extra ``progress``). None: only if standard
        error is a terminal and tqdm is installed.
        """
        return await self._run(until_caught_up=True, progress=progress, handle_signals=handle_signals)

    async def replay(self, dead_letters: Iterable[DeadLetter] | None = None) -> int:
        """Hand messages that this consumer parked to its handlers again; returns how many were handled.

        ``dead_letters`` are some that ``iter_dead_letters`` of the store returned. None: all of this consumer, with all
        members of its group, in the order in which they were parked. Messages without a handler are skipped.

        The handler gets the message with its own stream, positions and time, as when the consumer reads it, and the
        retry policy applies. A transactional consumer commits what the handler writes together with the fact that the
        dead letter is handled: exactly once in effect, even if several processes replay at the same time. Otherwise
        that is written after the handler has returned: at least once. If the handler fails again, the dead letter
        stays, with the new error, and the next one is handed over.

        The consumer may run meanwhile, here or elsewhere: its position is not used. ``stop`` makes it return too.
        """
        return await self._spawned(self._replays.own.run, dead_letters)

    def state(self) -> ConsumerState:
        """What the consumer is doing at this moment. Call it from any thread, as often as you like: it costs a few
        microseconds, and asks nobody. In a forked child process it is that of a consumer that has not been run."""
        return self._loop.own.state()

    def stop(self) -> None:
        """Make ``run`` return, as a signal does. Call it from any thread, or in a handler. If you call it before
        ``run``, ``run`` returns at once.

        If the server then does not answer a statement of the consumer for 5 seconds, as when the network is cut, the
        connection is closed, and ``run`` returns without recording the position. A warning says so; messages since the
        last recorded position are handled again. It waits for a handler to return, however long that takes.
        """
        self._loop.own.stop()
        self._replays.own.stop()

    async def _run(self, **options: Any) -> int:
        return await self._spawned(self._loop.own.run, **options)

    async def _spawned(self, run: Callable[..., int], *arguments: Any, **options: Any) -> int:
        handled: Any = await greenlet_spawn(run, *arguments, **options)
        if isinstance(handled, BaseException):
            # A greenlet returns a GreenletExit, instead of raising it.
            raise handled
        number: int = handled
        return number
