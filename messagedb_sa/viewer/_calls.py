"""The calls of a Store or an AsyncStore, awaited by pages that need not know which it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import Engine, Executable
from starlette.concurrency import run_in_threadpool

from messagedb_sa.errors import InvalidArgument, MessageNotDecodable
from messagedb_sa.message import Message
from messagedb_sa.store import AsyncStore, Store

T = TypeVar("T")


@dataclass(frozen=True)
class Found(Generic[T]):
    results: list[T]
    undecodable: MessageNotDecodable | None
    """The error about the message after them."""


class Calls:
    """The calls of a store. Those of a Store run in Starlette's threads, those of an AsyncStore are awaited.

    The pages show messages as they are stored, so the store's ``types`` are not used; ``store`` has them.
    """

    def __init__(self, store: Store | AsyncStore) -> None:
        if not isinstance(store, (Store, AsyncStore)):
            raise InvalidArgument("store", store, "must be a Store or an AsyncStore")
        if store.bind is not store.engine:
            raise InvalidArgument("store", store, "must be on an engine, since requests cannot share a transaction")
        self.store = store
        # Both have the same methods, so that what is passed to call is written for one of them.
        self.plain: Any = Store(store.engine) if isinstance(store, Store) else AsyncStore(store.engine)

    async def call(self, method: Callable[[Store], T]) -> T:
        """``await calls.call(lambda store: store.read_stream("account-1"))``"""
        if isinstance(self.plain, Store):
            return await run_in_threadpool(method, self.plain)
        return cast("T", await cast("Any", method(self.plain)))

    async def first(self, number: int, method: Callable[[Store], Iterator[T]]) -> list[T]:
        """The first results of a method that iterates."""
        found: list[T] = []
        await self._fill(found, number, method)
        return found

    async def first_decodable(self, number: int, method: Callable[[Store], Iterator[T]]) -> Found[T]:
        """The first results, or those before a message that cannot be decoded."""
        found: list[T] = []
        try:
            await self._fill(found, number, method)
        except MessageNotDecodable as error:
            return Found(found, error)
        return Found(found, None)

    async def _fill(self, found: list[T], number: int, method: Callable[[Store], Iterator[T]]) -> None:
        if isinstance(self.plain, Store):
            return await run_in_threadpool(lambda: found.extend(islice(method(self.plain), number)))
        async for each in cast("Any", method(self.plain)):
            found.append(each)
            if len(found) == number:
                break
        return None

    async def select(self, statement: Executable) -> list[Message]:
        """The rows of a statement that returns the columns of a message."""
        return await self.call(lambda store: store.read("$all", statement))

    async def scalar(self, statement: Executable) -> Any:
        """The first value of the first row of any other statement."""
        if isinstance(self.plain, Store):
            return await run_in_threadpool(self._scalar, self.plain.engine, statement)
        async with self.plain.engine.connect() as connection:
            return await connection.scalar(statement)

    @staticmethod
    def _scalar(engine: Engine, statement: Executable) -> Any:
        with engine.connect() as connection:
            return connection.scalar(statement)
