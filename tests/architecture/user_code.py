"""What users write, for type checkers: ``make check`` runs mypy and pyright on it, both in strict mode.

It is never run. Every result whose type is a promise is held by ``assert_type``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Engine, create_engine, select, true
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tenacity import Retrying, stop_after_attempt
from typing_extensions import assert_type

from messagedb_sa import (
    NO_STREAM,
    Activity,
    AppendCondition,
    AppendConditionFailed,
    AsyncConsumer,
    AsyncStore,
    AsyncSubscription,
    CategorySummary,
    Consumer,
    ConsumerStatus,
    DeadLetter,
    Entity,
    HandlerFailed,
    Handlers,
    InvalidArgument,
    Loaded,
    Message,
    MessageInput,
    MessageTypes,
    NewMessage,
    NotCaughtUp,
    OpenWriter,
    Query,
    QueryResult,
    Store,
    StreamSummary,
    StreamWrite,
    StreamWriteInput,
    Subscription,
    Tracing,
    WrongExpectedVersion,
    applies,
    follow,
    functions,
    install,
    schema,
    stream_name,
    transfer,
)
from messagedb_sa.testing import Scenario, backdated, given, temporary_database, temporary_server

types = MessageTypes()


@types.register
@dataclass(frozen=True)
class Opened:
    owner: str


@types.register(name="PaidIn", version=2)
@dataclass(frozen=True)
class Deposited:
    cents: int


@types.upcast("PaidIn", from_version=1)
def in_cents(data: dict[str, Any]) -> dict[str, Any]:
    return {"cents": data["amount"] * 100}


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    number: Mapped[int] = mapped_column(primary_key=True)
    stream: Mapped[str]


def write(engine: Engine) -> None:
    store = Store(engine, types=types, tracing=Tracing(), combine_writes=True)
    assert_type(store.engine, Engine)
    assert_type(Store.from_url("postgresql://", types=types, pool_size=2), Store)
    assert_type(store.write("account-1", "Opened", {"owner": "Ada"}), int)
    assert_type(store.write("account-1", "Noted", None, {"by": "Ada"}, NO_STREAM, id=uuid4()), int)
    assert_type(store.write("account-1", Deposited(500), metadata={"by": "Ada"}, expected_version=0), int)
    new = types.new_message(Deposited(1), {"by": "Ada"}, id=uuid4())
    assert_type(new, NewMessage)
    assert_type(store.write_batch("account-1", [("Noted", {}), ("Noted", {}, {"by": "Ada"}), new, Opened("Ada")]), int)
    assert_type(types.decode(store.read("account-1")[0]), Message)
    assert_type(store.write_batch("account-1", (Deposited(cents) for cents in range(9)), expected_version=4), int)
    batch: list[MessageInput] = [("Noted", {}), Opened("Ada"), new]
    writes: list[StreamWriteInput] = [("mail-1", batch), ("mail-2", batch, 0), StreamWrite("mail-3", batch)]
    assert_type(store.write_streams(writes), dict[str, int])
    written = store.write_streams(
        [("mail-1", [new], NO_STREAM), ("mail-2", [("Sent", {})]), StreamWrite("mail-3", [new])]
    )
    assert_type(written, dict[str, int])
    try:
        store.write("account-1", "Noted", {}, expected_version=7)
    except WrongExpectedVersion as error:
        assert_type(error.actual_version, int | None)
    except InvalidArgument as error:
        assert_type(error.reason, str)


def read(store: Store) -> None:
    assert_type(store.read("account-1"), list[Message])
    assert_type(store.read("account", select(schema.messages), position=1), list[Message])
    assert_type(store.read("$all", allow_holes=True, settle_seconds=0), list[Message])
    assert_type(store.read_stream("account-1", 2, 10, condition="type = 'Noted'"), list[Message])
    assert_type(store.read_category("account", 1, 10, 0, 4, correlation="mail"), list[Message])
    assert_type(store.read_last_message("account-1", "Opened"), Message | None)
    assert_type(store.stream_version("account-1"), int)
    assert_type(store.stream_identifiers("account"), list[str])
    assert_type(store.consumers("account"), list[ConsumerStatus])
    assert_type([each.lag for each in store.consumers(lag=False)], list[int | None])
    assert_type(store.forget_consumer("account", "mailer", group_size=4), int)
    store.set_consumer_position("account", "end", "mailer")
    store.set_consumer_position("account", 17, "mailer", group_member=0, group_size=4)
    assert_type(store.version(), str)
    assert_type(store.discard_dead_letters(store.iter_dead_letters("account")), int)
    assert_type(store.read_dead_letter(UUID(int=1)), DeadLetter | None)
    for letter in store.iter_dead_letters("account"):
        assert_type(letter, DeadLetter)
        assert_type(letter.message, Message)
        assert_type(letter.failed_at, datetime)
    assert_type(store.read_stream("account-1", no_of_messages=10, backwards=True), list[Message])
    assert_type(store.read_category("account", None, 10, 0, 4, backwards=True), list[Message])
    assert_type(store.read("$all", position=None, backwards=True), list[Message])
    assert_type([*store.iter_all(backwards=True), *store.iter_stream("account-1", 5, backwards=True)], list[Message])
    assert_type(store.last_global_position("$all"), int)
    for message in (*store.iter_stream("account-1"), *store.iter_category("account"), *store.iter_all(batch_size=9)):
        assert_type(message, Message)
        assert_type(message.time, datetime)
        assert_type(message.stream_id, str | None)
        fields: dict[str, object] = dict(message)
        assert_type(message.as_json_dict(), dict[str, Any])
        print(message.data["owner"], message["position"], fields["id"], UUID(message.id))


def decide_by_query(store: Store) -> None:
    known = store.read_query([Query("course", [Opened, "Closed"], ["course:1"]), Query("student", tags=("a", "b"))])
    assert_type(known, QueryResult)
    assert_type(known[0], Message)
    assert_type(known.condition, AppendCondition)
    assert_type(known.condition.after, dict[str, int])
    assert_type([message.type for message in store.iter_query(Query("course"), batch_size=9)], list[str])
    written = store.write_streams([("course-1", [Opened("Ada")]), ("student-1", [], 7)], condition=known.condition)
    assert_type(written, dict[str, int])
    never = AppendCondition(Query("course", tags=["course:1"]), after=0)
    try:
        store.write_batch("course-1", [NewMessage("Opened", {}, {"tags": ["course:1"]})], condition=never)
    except AppendConditionFailed as error:
        assert_type(error.global_position, int)


async def decide_by_query_async(store: AsyncStore) -> None:
    known = await store.read_query(Query("course"), 7, no_of_messages=10)
    assert_type(known, QueryResult)
    assert_type(await store.write_batch("course-1", [("Noted", {})], condition=known.condition), int)
    assert_type([message.type async for message in store.iter_query([Query("course")])], list[str])


def follow_messages(store: Store) -> None:
    for message in store.iter_correlation("transfer-1", batch_size=9):
        assert_type(message, Message)
        assert_type(follow(message), dict[str, Any])
        store.write("account-1", Opened("Ada"), metadata=follow(message, {"properties": {"tenant": "north"}}))
        assert_type(types.new_message(Opened("Ada"), follow(message)), NewMessage)
        assert_type(store.read_causes(message, -1), list[Message])
        assert_type(store.read_effects(message, no_of_messages=10), list[Message])
    assert_type(store.read_correlation("transfer-1", 1, 10), list[Message])
    schema.correlation_index(postgresql_concurrently=True)
    schema.causation_index()


async def follow_messages_async(store: AsyncStore) -> None:
    assert_type([each async for each in store.iter_correlation("transfer-1")], list[Message])
    (message,) = await store.read_correlation("transfer-1", no_of_messages=1)
    assert_type(await store.read_causes(message), list[Message])
    assert_type(await store.read_effects(message), list[Message])


def look(store: Store) -> None:
    assert_type(store.read_message(uuid4()), Message | None)
    assert_type(store.read_metadata({"tenant": "north"}, "account", 7, 10, backwards=True), list[Message])
    assert_type([each.type for each in store.iter_metadata({"tenant": "north"}, batch_size=9)], list[str])
    assert_type(store.categories(exact=True), list[CategorySummary])
    assert_type([each.messages for each in store.categories()], list[int])
    for stream in store.iter_streams("account", batch_size=9, after="account-1"):
        assert_type(stream, StreamSummary)
        assert_type(stream.last_time, datetime)
    assert_type(store.recent_streams("account", no_of_messages=9), list[StreamSummary])
    assert_type(store.activity(), list[Activity])
    for writer in store.open_writers():
        assert_type(writer, OpenWriter)
        assert_type(writer.process_id, int | None)


async def look_async(store: AsyncStore) -> None:
    assert_type(await store.read_message("00000000-0000-0000-0000-000000000001"), Message | None)
    assert_type([each.data async for each in store.iter_metadata({"tenant": "north"})], list[Any])
    assert_type([each.version async for each in store.iter_streams("account")], list[int])
    assert_type(await store.categories(), list[CategorySummary])
    assert_type(await store.activity("account"), list[Activity])
    assert_type(await store.open_writers(), list[OpenWriter])


def wait(store: Store) -> None:
    try:
        assert_type(store.wait_for_consumer("account", "greeter", "account-1", seconds=2, correlation="mail"), None)
    except NotCaughtUp as error:
        assert_type(error.position, int | None)
        assert_type(error.wanted, int)


async def wait_async(store: AsyncStore) -> None:
    try:
        await store.wait_for_consumer("$all")
    except TimeoutError as error:
        print(error)


async def use_async(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(install.upgrade, notify=True)
        assert_type(await AsyncStore(connection).write("account-1", "Opened", {}), int)
    async with AsyncSession(engine) as session:
        assert_type(await AsyncStore(session, types=types).write("account-1", Opened("Ada")), int)
        await session.commit()
    store = AsyncStore(create_async_engine("postgresql+asyncpg://"), types=types)
    assert_type(store.engine, AsyncEngine)
    assert_type(AsyncStore.from_url("postgresql+asyncpg://", combine_writes=True), AsyncStore)
    assert_type(await store.write_batch("account-1", [Opened("Ada"), ("Noted", {})]), int)
    assert_type(await store.write_streams([("mail-1", [Opened("Ada")])]), dict[str, int])
    assert_type(await store.read("account"), list[Message])
    assert_type(await store.read_stream("account-1"), list[Message])
    assert_type(await store.read_category("account"), list[Message])
    assert_type(await store.read_last_message("account-1"), Message | None)
    assert_type(await store.read("$all", backwards=True), list[Message])
    assert_type([each async for each in store.iter_category("account", backwards=True)], list[Message])
    assert_type(await store.last_global_position("account"), int)
    assert_type(await store.stream_version("account-1"), int)
    assert_type(await store.stream_identifiers("account"), list[str])
    assert_type(await store.consumers("account"), list[ConsumerStatus])
    assert_type(await store.forget_consumer("account"), int)
    await store.set_consumer_position("account", 17)
    assert_type(await store.version(), str)
    assert_type([each async for each in store.iter_stream("account-1")], list[Message])
    assert_type([each.type async for each in store.iter_category("account")], list[str])
    assert_type([each.time async for each in store.iter_all()], list[datetime])
    letters = [each async for each in store.iter_dead_letters("account")]
    assert_type(letters, list[DeadLetter])
    assert_type(await store.discard_dead_letters(letters), int)


def in_one_transaction(engine: Engine, sessions: sessionmaker[Session]) -> None:
    with engine.begin() as connection:
        assert_type(Store(connection).write("account-1", "Opened", {}), int)
    with sessions.begin() as session:
        session.add(Account(number=1, stream="account-1"))
        assert_type(Store(session).write_batch("account-1", [("Opened", {})], NO_STREAM), int)


def in_own_queries(session: Session) -> None:
    last = functions.get_last_stream_message(Account.stream).messages("last").lateral()
    for account, version in session.execute(select(Account, functions.stream_version(Account.stream))).tuples():
        assert_type(account, Account)
        assert_type(version, int | None)
    session.execute(select(Account.number, last.c.type, last.c.data).outerjoin(last, true()))
    assert_type(session.scalars(select(functions.category(Account.stream))).all()[0], str)
    session.execute(select(schema.category_type_summary).where(functions.is_category("account")))
    assert_type(stream_name.consumer_group_member("account-1", 4), int | None)


@dataclass
class Balance:
    owner: str | None = None
    cents: int = 0

    @applies(Opened)
    def opened(self, message: Message[Opened]) -> None:
        self.owner = message.data.owner

    @applies(Deposited)
    def deposited(self, message: Message[Deposited]) -> Balance:
        return Balance(self.owner, self.cents + message.data.cents)

    @applies("Noted")
    @applies("Renamed")
    def noted(self, message: Message) -> None:
        self.owner = message.data["owner"]

    @applies(Deposited)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    def wrong(self, message: Message[Opened]) -> None:
        pass


def add(state: int, message: Message) -> int:
    return state + int(message.data["n"])


balance = Entity("account", Balance, types=types, snapshot_every=100, state_version=2, cache=1_000)
total = Entity("total", int, add)
seen: Entity[list[str]] = Entity("seen", list, lambda state, message: state.append(message.type))


def pay_in(cents: int) -> Callable[[Balance], Deposited]:
    return lambda state: Deposited(cents + state.cents)


def open_for(state: Balance) -> list[Opened] | None:
    return None if state.owner else [Opened("Ada")]


def decide(store: Store) -> None:
    assert_type(balance, Entity[Balance])
    assert_type(total, Entity[int])
    assert_type(store.load(balance, "1"), Loaded[Balance])
    state, version = store.load(total, uuid4())
    assert_type(state, int)
    assert_type(version, int)
    assert_type(store.decide(balance, "1", pay_in(5)), Loaded[Balance])
    store.decide(balance, "1", open_for, metadata={"by": "Ada"}, command_id=uuid4(), retries=3)
    store.decide(total, "1", lambda n: ("Added", {"n": n}))
    store.decide(total, "1", lambda n: [("Added", {"n": n}), NewMessage("Added", {"n": n}), Opened("Ada")])
    store.decide(total, "1", open_for)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(seen.stream_name("1"), str)


async def decide_later(state: Balance) -> list[Deposited]:
    return [Deposited(state.cents)]


async def decide_async(store: AsyncStore) -> None:
    assert_type(await store.load(balance, "1"), Loaded[Balance])
    assert_type(await store.decide(balance, "1", decide_later, retries=3), Loaded[Balance])
    assert_type(await store.decide(balance, "1", open_for), Loaded[Balance])


def test_decisions() -> None:
    scenario = given(balance, Opened("Ada"), ("Noted", {"owner": "Bob"})).when(pay_in(5))
    assert_type(scenario, Scenario[Balance])
    assert_type(scenario.then(Deposited(5)).state, Balance)
    given(balance).when(open_for).then(Opened("Ada"), NewMessage("Noted", {}))
    given(balance).when(decide_later).then()


def plain(message: Message) -> None:
    print(message.type)


def on_connection(message: Message, connection: Connection) -> None:
    Store(connection).write("mail-1", "Queued", {"about": message.stream_name})


def on_session(message: Message, session: Session) -> None:
    session.add(Account(number=message.position, stream=message.stream_name))


def consume(store: Store, sessions: sessionmaker[Session]) -> None:
    retry = Retrying(stop=stop_after_attempt(3))
    consumer = Consumer(store, "account", plain, "mailer", retry=retry, on_failure="park", poll_seconds=0.5)
    handlers: dict[type | str, Callable[[Message], None]] = {Opened: plain, "Noted": plain}
    Consumer(store, "account", handlers, "greeter", slots=8, streams_without_id="skip")
    Consumer(store, "account", plain, "greeter", positions="table")
    Consumer(store, "account", {Opened: plain}, group_member=0, group_size=4, position="end", correlation="mail")
    Consumer(store, "$all", {"Noted": on_connection}, "sums", transactional=True, record_every=100)
    Consumer(store, "account", on_session, "rows", transactional=sessions, record_seconds=1, batch_size=10)
    Consumer(store, "account", {Opened: on_session, Deposited: on_session}, "rows", transactional=Session)
    try:
        assert_type(consumer.run_until_caught_up(progress=False), int)
        assert_type(consumer.replay(store.iter_dead_letters("account")), int)
        consumer.run(handle_signals=False)
    except HandlerFailed as error:
        assert_type(error.message, Message)
    consumer.stop()


handlers = Handlers()


@handlers.on(Deposited)
def deposit(message: Message[Deposited]) -> int:
    return message.data.cents


@handlers.on(Opened, Deposited)
def notify(message: Message[Opened] | Message[Deposited]) -> None:
    print(message.data)


@handlers.on(Opened, Deposited, Account)
def notify_of_three(message: Message[Opened | Deposited | Account]) -> None:
    print(message.data)


@handlers.on("Noted", "Closed", Opened)
def by_name(message: Message) -> None:
    print(message.data["text"])


@handlers.on(Deposited)
def deposit_on_session(message: Message[Deposited], session: Session) -> None:
    session.add(Account(number=message.data.cents, stream=message.stream_name))


@handlers.on(Deposited)
async def deposit_awaited(message: Message[Deposited], connection: AsyncConnection) -> None:
    await AsyncStore(connection).write("mail-1", "Queued", {"cents": message.data.cents})


@handlers.on(Deposited)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def deposit_of_another_class(message: Message[Opened]) -> None:
    print(message.data.owner)


@handlers.on(Opened, Deposited)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def notify_of_one_of_them(message: Message[Opened]) -> None:
    print(message.data.owner)


@handlers.on(Deposited)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def deposit_without_the_message(cents: int) -> None:
    print(cents)


@handlers.on(5)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore
def by_number(message: Message) -> None:
    print(message.data)


def consume_by_class(store: Store, async_store: AsyncStore, message: Message[Deposited]) -> None:
    assert_type(deposit(message), int)
    assert_type(by_name(message), None)
    Consumer(store, "account", handlers, "mailer")
    Consumer(store, "account", handlers, "mailer", transactional=True)
    Consumer(store, "account", handlers, "mailer", transactional=Session)
    AsyncConsumer(async_store, "account", handlers, "mailer")
    AsyncConsumer(async_store, "account", handlers, "mailer", transactional=True)


async def awaited(message: Message) -> None:
    print(message.type)


async def awaited_on_connection(message: Message, connection: AsyncConnection) -> None:
    await AsyncStore(connection).write("mail-1", "Queued", {"about": message.stream_name})


async def awaited_on_session(message: Message, session: AsyncSession) -> None:
    session.add(Account(number=message.position, stream=message.stream_name))


async def consume_async(store: AsyncStore, sessions: async_sessionmaker[AsyncSession]) -> None:
    consumer = AsyncConsumer(store, "account", {Opened: awaited, "Noted": plain}, "mailer", slots=1)
    AsyncConsumer(store, "account", awaited_on_connection, "sums", transactional=True)
    AsyncConsumer(store, "account", awaited_on_session, "rows", transactional=sessions)
    assert_type(await consumer.run_until_caught_up(), int)
    assert_type(await consumer.replay(), int)
    await consumer.run()
    consumer.stop()


def subscribe(store: Store) -> None:
    with Subscription(store, "account", "end", correlation="mail", poll_seconds=1, reconnect=True) as messages:
        for message in messages:
            assert_type(message, Message)
            messages.close()
    assert_type(next(Subscription(store, "$all", 1, batch_size=10)), Message)


async def subscribe_async(store: AsyncStore) -> None:
    async with AsyncSubscription(store, "account-1", 7) as messages:
        async for message in messages:
            assert_type(message, Message)
            await messages.close()
    assert_type(await anext(AsyncSubscription(store, "account")), Message)


def transfer_all(store: Store, other: Store) -> None:
    assert_type(transfer.export_messages(store, "$all", "all.jsonl.gz", position=7), transfer.Transferred)
    with Path("all.jsonl").open("rb") as file:
        assert_type(transfer.import_messages(other, file, new_global_positions=True).messages, int)
    copied = transfer.copy(store, other, settle_seconds=1, on_progress=lambda done, total: print(done, total))
    assert_type(copied.unsettled, int | None)
    assert_type(transfer.verify(store, other, up_to=copied.last_global_position).differences, list[transfer.Difference])


def test(messagedb_store: Store, messagedb_async_store: AsyncStore) -> None:
    with backdated(messagedb_store, datetime(2026, 1, 31, tzinfo=timezone.utc)) as dated:
        assert_type(dated, Store)
        assert_type(dated.write("account-1", Opened("Ada")), int)
    with temporary_server(settings={"max_connections": "20"}) as server_url, temporary_database(server_url) as url:
        assert_type(url, str)
        engine = create_engine(url)
        install.upgrade(engine, role=False)
        assert_type(install.current(engine), str | None)
        install.downgrade(engine, discard_messages=True)
    types.check()
    (message,) = messagedb_store.read_category("account")
    assert message.data == Opened("Ada")
