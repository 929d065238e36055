"""The consumer: hands a category's messages to handlers, one after another, and remembers how far it came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from sqlalchemy import Connection
from sqlalchemy.orm import Session, sessionmaker

from messagedb_sa.consumer_options import ConsumerOptions, Handler, Handlers, session_factory
from messagedb_sa.consuming import Consuming
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message import Message
from messagedb_sa.store import Store
from messagedb_sa.waiting import Waiting

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Consumer"]

_Plain: TypeAlias = "Callable[[Message], object]"
_OnConnection: TypeAlias = "Callable[[Message, Connection], object]"
_OnSession: TypeAlias = "Callable[[Message, Any], object]"


class Consumer:
    """Reads a category on from where this consumer stopped, and hands each message to its handler.

    ``handlers`` is a function for all messages, or a mapping of message types, or of classes of the store's ``types``,
    to functions; messages of other types are passed over. They are called one after another, in the order of the log.
    ``category`` may be ``$all``: the whole store but the positions of consumers, without holes (see Store.read).

    **At least once**, by default: a handler is called with the message. What was handled after the last recorded
    position is handled again after a crash. **Exactly once in effect**, with ``transactional=True``: a handler is
    called with the message and a Connection in a transaction; what it writes there commits together with the position,
    or not at all; ``record_every`` has several messages in a transaction. ``transactional=sessionmaker(...)``, or the
    class Session, gives it a Session of that instead. It must not commit.

    ``identifier`` tells consumers of one category apart. The position is kept as Eventide's consumers keep it, in the
    stream ``account:position-identifier`` for the category ``account``. Two at the same time with one identifier, and
    without slots, end in PositionConflict.

    A handler's exception stops the consumer with HandlerFailed; nothing is skipped. ``options`` are those of
    ConsumerOptions. A lost connection is waited out, with growing pauses of up to 10 seconds; the message in hand is
    then handled again. It has one connection of its own for as long as it runs, which is not the pool's.
    """

    @overload
    def __init__(
        self,
        store: Store,
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
        store: Store,
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
        store: Store,
        category: str,
        handlers: _OnSession | Mapping[Any, _OnSession],
        identifier: str | None = None,
        *,
        transactional: sessionmaker[Any] | type[Session],
        **options: Unpack[ConsumerOptions],
    ) -> None: ...

    def __init__(
        self,
        store: Store,
        category: str,
        handlers: Handlers,
        identifier: str | None = None,
        *,
        transactional: bool | sessionmaker[Any] | type[Session] = False,
        **options: Unpack[ConsumerOptions],
    ) -> None:
        if not isinstance(store, Store) or store._operations.joined:
            raise InvalidArgument(
                "store", store, "is no Store on an Engine, as it has to be: a consumer commits by itself"
            )
        self._consuming = Consuming(_Threads(store, transactional), category, handlers, identifier, **options)

    def run(self, *, handle_signals: bool = True) -> None:
        """Handle messages until ``stop``, or SIGTERM or SIGINT: then finish the one in hand, record the position,
        return.

        Signals are handled in the main thread only, and while it runs. One stops all consumers that run there; when
        they have finished, a handler that the application had set gets it too. A second one does what it did before.
        ``handle_signals=False`` leaves them alone. The first connection must succeed; later ones are waited for.
        """
        self._consuming.run(handle_signals=handle_signals)

    def run_until_caught_up(self, *, progress: bool | None = None, handle_signals: bool = True) -> int:
        """As ``run``, until there is nothing more to read, of a consumer with slots in those that it gets at the start,
        and of ``$all`` nothing that is settled; the number of messages that were handled. A signal then does what it
        does without a consumer, once the position is recorded.

        ``progress``: whether to show a bar on standard error, which tqdm draws (extra ``progress``). None: if that is a
        terminal, and tqdm is installed.
        """
        return self._consuming.run(until_caught_up=True, progress=progress, handle_signals=handle_signals)

    def stop(self) -> None:
        """Have ``run`` return, as a signal does. From any thread, or from a handler; before ``run``, it returns at
        once."""
        self._consuming.stop()


class _Threads:
    """A Host of blocking code."""

    def __init__(self, store: Store, transactional: object) -> None:
        self.engine = store.engine
        self.operations = store._operations
        self.transactional = transactional is not False
        self._waiting: Waiting | None = None
        self._session = session_factory(transactional, sessionmaker, Session)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self._waiting = Waiting()
        try:
            yield
        finally:
            waiting, self._waiting = self._waiting, None
            waiting.close()

    def wait(self, seconds: float, connection: Connection | None) -> set[str]:
        assert self._waiting is not None
        return self._waiting.wait(seconds, connection)

    def wake(self) -> None:
        if (waiting := self._waiting) is not None:
            waiting.wake()

    def call(self, handler: Handler, *arguments: Any) -> None:
        result = handler(*arguments)
        if type(result) is CoroutineType:
            result.close()
            raise TypeError("the handler returned a coroutine, which only AsyncConsumer awaits")

    @contextmanager
    def joined(self, connection: Connection) -> Iterator[Any]:
        if self._session is None:
            yield connection
            return
        with self._session(bind=connection, join_transaction_mode="conditional_savepoint") as session:
            yield session
            session.flush()
