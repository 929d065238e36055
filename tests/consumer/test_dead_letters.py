"""Dead letters: listed, handed to the handlers again, and discarded."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Session
from tenacity import Retrying, stop_after_attempt

from messagedb_sa import (
    AsyncConsumer,
    AsyncStore,
    Consumer,
    DeadLetter,
    HandlerFailed,
    InvalidArgument,
    Message,
    MessageTypes,
    Store,
)

from ..support import NESTED, Order, as_role, consumer_on, exit_code, fork, insert, nested_is_refused, numbers, orders
from ..waits import HANG, wait_until
from .support import Failing, asking_apart, order_numbers, running, terminate_all, write


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(100, "messagedb_sa.consumer")


def fail(message: Message, *_: Any) -> None:
    raise ValueError(f"no {message.position}")


def park(store: Store, category: str = "account", identifier: str | None = "mailer", **options: Any) -> None:
    """Park every message of the category."""
    consumer_on(store, category, fail, identifier, on_failure="park", **options).run_until_caught_up()


def parked(store: Store, category: str = "account") -> list[DeadLetter]:
    return list(store.iter_dead_letters(category))


def add_order(message: Message, connection: Connection) -> None:
    connection.execute(orders.insert(), {"number": message.data["n"]})


# Listing


def test_a_dead_letter_has_the_message_that_failed_and_its_error(each_store: Store) -> None:
    each_store.write("account-1", "Opened", {"n": 0}, {"causationMessagePosition": 7, "dead": {"n": 1}})
    each_store.write("account-2", "Opened", None)
    failed = each_store.read("account")
    park(each_store)
    first, second = parked(each_store)
    assert [first.message, second.message] == failed
    assert (first.category, first.identifier, first.error) == ("account", "mailer", "ValueError: no 0")
    assert "in fail" in first.traceback
    (stored, _) = each_store.read("account:dead-mailer")
    assert (first.id, first.failed_at) == (stored.id, stored.time)


@pytest.mark.parametrize("category", ["account", "account:command", "account:dead", "$all"])
def test_those_of_all_consumers_are_in_the_order_in_which_they_were_parked(store: Store, category: str) -> None:
    write(store, 2, "account" if category == "$all" else category)
    for identifier in (None, "mailer", "a-b+c"):
        park(store, category, identifier)
    found = list(store.iter_dead_letters(category, batch_size=1))
    assert [each.identifier for each in found] == [None, None, "mailer", "mailer", "a-b+c", "a-b+c"]
    assert numbers(each.message for each in found) == 3 * [0, 1]
    assert {each.category for each in found} == {category}


@pytest.mark.parametrize("transactional", [False, True])
@nested_is_refused
def test_messages_that_cannot_be_decoded_are_listed(each_store: Store, store: Store, transactional: bool) -> None:
    insert(store, "account-1", 0, "Odd", NESTED, metadata="{}")
    insert(store, "account-1", 1, "Odd", "{}", metadata=f'{{"n": {NESTED}}}')
    insert(store, "account-1", 2, "Odd", "{}", "'12000-01-01'")
    insert(store, "account-1", 3, "Odd", "{}", "'-infinity'")
    insert(store, "account-1", 4, "Odd", '{"n": 4}', "'0099-01-02 03:04:05'")
    park(each_store, transactional=transactional)
    found = [each.message for each in parked(each_store)]
    assert [each.position for each in found] == [0, 1, 2, 3, 4]
    assert found[0].data == NESTED
    assert found[1].metadata == f'{{"n": {NESTED}}}'
    assert [each.time.year for each in found[2:]] == [9999, 1, 99]
    with_handler = consumer_on(each_store, "account", lambda *_: None, "mailer", transactional=transactional)
    assert with_handler.replay() == 1
    assert ["cannot be decoded" in each.error or "9999" in each.error for each in parked(each_store)] == 4 * [True]


def test_messages_that_do_not_fit_their_class_are_listed(store: Store) -> None:
    types = MessageTypes()

    @types.register
    @dataclass
    class Opened:
        n: int

    store.write("account-1", "Opened", {"n": "one"})
    typed = Store(store.engine, types=types)
    park(typed)
    assert parked(typed)[0].message.data == {"n": "one"}
    assert "MessageNotDecodable" in parked(typed)[0].error


@pytest.mark.parametrize(
    "metadata", [None, "[]", '"dead"', '{"dead": {}}', '{"dead": {"id": "1", "time": "x"}}', '{"dead": 1}']
)
def test_what_others_write_to_the_streams_is_not_listed(store: Store, metadata: str | None) -> None:
    insert(store, "account:dead-mailer", 0, "Opened", "{}", metadata=metadata)
    assert parked(store) == []


@pytest.mark.parametrize("position", ["x", "-1", "1.5", "9" * 5000], ids=["text", "negative", "part", "huge"])
def test_one_without_the_position_of_its_message_is_not_listed(store: Store, position: str) -> None:
    write(store, 1)
    park(store)
    assert len(parked(store)) == 1
    new = "metadata = jsonb_set(metadata, '{causationMessageGlobalPosition}', to_jsonb(cast(:position AS text)))"
    update = f"UPDATE message_store.messages SET {new} WHERE stream_name = 'account:dead-mailer'"
    with store.engine.begin() as connection:
        assert connection.execute(text(update), {"position": position}).rowcount == 1
    assert parked(store) == []


@pytest.mark.parametrize(("time", "read"), [("infinity", datetime.max), ("-infinity", datetime.min)])
def test_a_failure_at_a_time_that_python_does_not_have_is_listed(
    each_store: Store, store: Store, time: str, read: datetime
) -> None:
    write(store, 1)
    park(store)
    update = f"UPDATE message_store.messages SET time = '{time}' WHERE stream_name = 'account:dead-mailer'"
    with store.engine.begin() as connection:
        assert connection.execute(text(update)).rowcount == 1
    (letter,) = parked(each_store)
    assert letter.failed_at == read.replace(tzinfo=timezone.utc)


@pytest.mark.parametrize("category", ["account-1", "", "a\0"])
def test_dead_letters_are_those_of_a_category(store: Store, category: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^category_name="):
        store.iter_dead_letters(category)


# Discarding


def test_discarded_ones_are_gone_and_counted_once(each_store: Store) -> None:
    write(each_store, 3)
    park(each_store)
    first, second, third = parked(each_store)
    assert each_store.discard_dead_letters([third, first, first]) == 2
    assert parked(each_store) == [second]
    assert each_store.discard_dead_letters([first, second, third]) == 1
    assert each_store.discard_dead_letters([]) == 0
    assert parked(each_store) == []


def test_those_of_several_categories_are_discarded_together(store: Store) -> None:
    for category in ("account", "order"):
        write(store, 2, category)
        park(store, category)
    assert store.discard_dead_letters([*parked(store), *parked(store, "order")]) == 4
    assert [*parked(store), *parked(store, "order")] == []


def test_they_are_discarded_in_the_callers_transaction(store: Store) -> None:
    write(store, 1)
    park(store)
    with store.engine.connect() as connection:
        joined = Store(connection)
        assert joined.discard_dead_letters(joined.iter_dead_letters("account")) == 1
        assert parked(joined) == []
        connection.rollback()
    assert len(parked(store)) == 1


@pytest.mark.parametrize("letters", ["account", 1, [1], [None]])
def test_only_dead_letters_can_be_discarded(store: Store, letters: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^dead_letters"):
        store.discard_dead_letters(letters)


def test_a_single_dead_letter_must_be_in_a_list(store: Store) -> None:
    write(store, 1)
    park(store)
    with pytest.raises(InvalidArgument, match="also for one item"):
        store.discard_dead_letters(parked(store)[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("transactional", [False, True])
def test_a_message_that_fails_after_its_dead_letter_was_discarded_is_one_again(
    store: Store, transactional: bool
) -> None:
    write(store, 2)
    park(store)
    store.discard_dead_letters(parked(store)[:1])
    store.write("account:position-mailer", "Recorded", {"position": 0})
    consumer_on(
        store, "account", Failing(at=0), "mailer", on_failure="park", transactional=transactional
    ).run_until_caught_up()
    again, other = parked(store)
    assert (again.error, other.error) == ("ValueError: no 0", "ValueError: no 0")
    assert numbers([again.message, other.message]) == [0, 1]
    assert again.failed_at > other.failed_at


def test_consumers_of_the_whole_store_skip_what_became_of_dead_letters(store: Store) -> None:
    write(store, 2)
    park(store)
    store.discard_dead_letters(parked(store)[:1])
    Consumer(store, "account", fail, "mailer").replay()
    handled: list[Message] = []
    Consumer(store, "$all", handled.append).run_until_caught_up()
    assert numbers(handled) == [0, 1]
    assert store.consumers("$all")[0].lag == 0


# Replaying


@pytest.mark.parametrize("transactional", [False, True])
def test_handlers_get_the_messages_that_failed_in_their_order(each_store: Store, transactional: bool) -> None:
    write(each_store, 4)
    failed = each_store.read("account")
    park(each_store)
    handled: list[Message] = []
    consumer = consumer_on(
        each_store, "account", lambda message, *_: handled.append(message), "mailer", transactional=transactional
    )
    assert consumer.replay() == 4
    assert handled == failed
    assert parked(each_store) == []
    assert consumer.replay() == 0


def test_only_this_consumers_are_replayed_and_only_types_with_a_handler(store: Store) -> None:
    write(store, 2)
    park(store)
    park(store, identifier=None)
    handled: list[Message] = []
    assert Consumer(store, "account", {"Odd": handled.append}, "mailer").replay() == 1
    assert numbers(handled) == [1]
    assert [(each.identifier, each.message.data["n"]) for each in parked(store)] == [
        ("mailer", 0),
        (None, 0),
        (None, 1),
    ]


def test_a_member_replays_those_of_its_whole_group(store: Store) -> None:
    write(store, 3)
    for member in range(2):
        park(store, group_member=member, group_size=2)
    handled: list[Message] = []
    Consumer(store, "account", handled.append, "mailer", group_member=0, group_size=2).replay()
    assert sorted(numbers(handled)) == [0, 1, 2]


def test_some_can_be_chosen(each_store: Store) -> None:
    write(each_store, 3)
    park(each_store)
    first, second, third = parked(each_store)
    handled: list[Message] = []
    assert consumer_on(each_store, "account", handled.append, "mailer").replay([third, first]) == 2
    assert handled == [third.message, first.message]
    assert parked(each_store) == [second]


@pytest.mark.parametrize("identifier", [None, "other"])
def test_those_of_another_consumer_are_refused(store: Store, identifier: str | None) -> None:
    write(store, 1)
    park(store)
    with pytest.raises(InvalidArgument, match=r"^dead_letters\[0\]=.*must be a DeadLetter of this consumer"):
        Consumer(store, "account", print, identifier).replay(parked(store))


def test_what_a_handler_writes_commits_with_its_dead_letter(store: Store, tables: None) -> None:
    write(store, 3)
    park(store)

    def handle(message: Message, connection: Connection) -> None:
        add_order(message, connection)
        if message.data["n"] == 1:
            raise LookupError("still no 1")

    assert Consumer(store, "account", handle, "mailer", transactional=True).replay() == 2
    assert order_numbers(store) == [0, 2]
    (left,) = parked(store)
    assert (left.error, left.message.data) == ("LookupError: still no 1", {"n": 1})
    assert "in handle" in left.traceback


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_what_an_asynchronous_handler_writes_commits_with_its_dead_letter(
    store: Store, tables: None, driver: str
) -> None:
    write(store, 3)
    park(store)

    async def handle(message: Message, connection: AsyncConnection) -> None:
        await connection.execute(orders.insert(), {"number": message.data["n"]})
        if message.data["n"] == 1:
            raise LookupError("still no 1")

    async def main() -> int:
        own = AsyncStore.from_url(store.engine.url.set(drivername=f"postgresql+{driver}"))
        handled = await AsyncConsumer(own, "account", handle, "mailer", transactional=True).replay()
        await own.engine.dispose()
        return handled

    assert asyncio.run(main()) == 2
    assert order_numbers(store) == [0, 2]
    assert [each.error for each in parked(store)] == ["LookupError: still no 1"]


def test_a_handler_can_get_a_session(store: Store, tables: None) -> None:
    write(store, 2)
    park(store)

    def handle(message: Message, session: Session) -> None:
        session.add(Order(number=message.data["n"]))

    assert Consumer(store, "account", handle, "mailer", transactional=Session).replay() == 2
    assert order_numbers(store) == [0, 1]


def test_handlers_get_instances_of_registered_classes(store: Store) -> None:
    types = MessageTypes()

    @types.register
    @dataclass
    class Even:
        n: int

    write(store, 1)
    park(store)
    handled: list[Message] = []
    Consumer(Store(store.engine, types=types), "account", {Even: handled.append}, "mailer").replay()
    assert handled[0].data == Even(0)


@pytest.mark.parametrize("transactional", [False, True])
def test_the_retry_policy_applies_and_each_attempt_gets_the_message_as_it_was(
    store: Store, transactional: bool
) -> None:
    write(store, 1)
    park(store)
    seen: list[Any] = []

    def handle(message: Message, *_: Any) -> None:
        seen.append(dict(message.data))
        message.data.clear()
        if len(seen) < 3:
            raise ValueError

    options: Any = {"retry": Retrying(stop=stop_after_attempt(3)), "transactional": transactional}
    assert Consumer(store, "account", handle, "mailer", **options).replay() == 1
    assert seen == 3 * [{"n": 0}]


def test_what_a_callback_of_the_retry_policy_deals_with_is_handled(store: Store) -> None:
    write(store, 1)
    park(store)
    policy = Retrying(stop=stop_after_attempt(2), retry_error_callback=lambda _: None)
    assert Consumer(store, "account", fail, "mailer", retry=policy).replay() == 1
    assert parked(store) == []


@pytest.mark.parametrize("transactional", [False, True])
def test_two_that_replay_at_the_same_time_handle_each_message_once_in_a_transaction(
    store: Store, tables: None, transactional: bool
) -> None:
    write(store, 3)
    park(store)
    reached, other_is_done = threading.Event(), threading.Event()

    def first(message: Message, connection: Connection) -> None:
        add_order(message, connection)
        reached.set()
        assert other_is_done.wait(HANG)

    def second(message: Message, *_: Any) -> None:
        with store.engine.begin() as connection:
            add_order(message, connection)

    counts: list[int] = []
    one = Consumer(store, "account", first, "mailer", transactional=True)
    other: Any = Consumer(store, "account", second, "mailer", transactional=transactional)  # type: ignore[call-overload]
    thread = threading.Thread(target=lambda: counts.append(one.replay()))
    thread.start()
    assert reached.wait(HANG)
    counts.append(other.replay())
    other_is_done.set()
    thread.join(HANG)
    assert counts == [2, 1]
    assert order_numbers(store) == [0, 1, 2]


def test_one_that_is_discarded_while_its_handler_fails_is_no_failure(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 2)
    park(store)

    def discard_and_fail(message: Message) -> None:
        if message.data["n"] == 0:
            assert store.discard_dead_letters(parked(store)[:1]) == 1
            raise ValueError(message)

    caplog.set_level(logging.WARNING, "messagedb_sa.consumer")
    assert Consumer(store, "account", discard_and_fail, "mailer").replay() == 1
    assert parked(store) == []
    assert caplog.records == []


@pytest.mark.parametrize("isolation_level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_one_that_is_discarded_while_it_is_replayed_is_rolled_back(
    store: Store, messagedb_url: str, tables: None, isolation_level: Any
) -> None:
    write(store, 2)
    park(store)
    letters = parked(store)
    own = Store(create_engine(messagedb_url, isolation_level=isolation_level, poolclass=NullPool))

    def handle(message: Message, connection: Connection) -> None:
        add_order(message, connection)
        if message.data["n"] == 0:
            assert store.discard_dead_letters(letters[:1]) == 1

    assert Consumer(own, "account", handle, "mailer", transactional=True).replay() == 1
    assert order_numbers(store) == [1]
    assert parked(store) == []


@pytest.mark.parametrize("transactional", [False, True])
def test_processes_killed_in_handlers_lose_nothing_and_repeat_nothing_in_a_transaction(
    store: Store, tables: None, transactional: Any
) -> None:
    write(store, 6)
    park(store)

    def child() -> None:
        started: list[int] = []
        name = {"application_name": "killed in handlers"}
        engine = create_engine(store.engine.url, poolclass=NullPool, connect_args=name)

        def handle(message: Message, connection: Connection | None = None) -> None:
            started.append(message.data["n"])
            if connection is None:
                store_of_child.write("handled-1", "Handled", {"n": message.data["n"]})
            else:
                add_order(message, connection)
            if len(started) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        store_of_child = Store(engine)
        Consumer(store_of_child, "account", handle, "mailer", transactional=transactional).replay()

    of_child = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'killed in handlers'")
    killed = 0
    while exit_code(fork(child)) == -signal.SIGKILL:
        killed += 1
        # Its transaction ends when the server notices.
        with asking_apart(store.engine) as asking:
            wait_until(lambda asking=asking: asking.scalar(of_child) == 0)  # type: ignore[misc]
        handled = 6 - len(parked(store))
        if transactional:
            assert order_numbers(store) == list(range(handled))
    assert killed == 5
    assert parked(store) == []
    if transactional:
        assert order_numbers(store) == [0, 1, 2, 3, 4, 5]
    else:
        assert sorted({*numbers(store.read("handled-1"))}) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("transactional", [False, True])
def test_a_lost_connection_is_made_again(store: Store, transactional: bool) -> None:
    write(store, 3)
    park(store)
    handled: list[int] = []

    def handle(message: Message, *_: Any) -> None:
        handled.append(message.data["n"])
        if handled == [0, 1]:
            terminate_all(store.engine)

    consumer: Any = Consumer(store, "account", handle, "mailer", transactional=transactional)  # type: ignore[call-overload]
    assert consumer.replay() == 3
    assert handled == [0, 1, 1, 2]
    assert parked(store) == []


def test_a_consumer_replays_while_it_runs_and_stop_ends_both(store: Store) -> None:
    write(store, 3)
    park(store)
    handled: list[Message] = []

    def handle(message: Message) -> None:
        handled.append(message)
        if len(handled) == 2:
            consumer.stop()

    consumer = Consumer(store, "account", handle, "mailer")
    with running(consumer):
        assert consumer.replay() == 2
    assert numbers(each.message for each in parked(store)) == [2]
    # And then it can be called again.
    assert consumer.replay() == 1


def test_a_consumer_that_stops_at_failures_goes_on_when_it_replays(store: Store) -> None:
    write(store, 2)
    park(store)
    consumer = Consumer(store, "account", Failing(at=0), "mailer")
    assert consumer.replay() == 1
    store.write("account-1", "Odd", {"n": 0})
    with pytest.raises(HandlerFailed):
        consumer.run_until_caught_up()


def test_the_privileges_of_a_consumer_are_enough(store: Store, login: Callable[..., str]) -> None:
    write(store, 3)
    park(store)
    role = login("replayer", "IN ROLE message_store")
    own = Store(as_role(store.engine, role))
    assert own.discard_dead_letters(parked(own)[:1]) == 1
    assert Consumer(own, "account", Failing(at=1), "mailer").replay() == 1
    assert Consumer(own, "account", lambda *_: None, "mailer", transactional=True).replay() == 1


def test_resolved_dead_letters_are_found_by_index(store: Store) -> None:
    write(store, 200)
    park(store)
    store.discard_dead_letters(parked(store)[:150])
    with store.engine.connect() as connection:
        connection.execute(text("SET enable_seqscan = off"))
        from messagedb_sa.store._dead_letter_statements import PAGE

        compiled: Any = PAGE.compile(dialect=store.engine.dialect, compile_kwargs={"literal_binds": False})
        parameters = {
            **compiled.params,
            "category": "account:dead",
            "outcomes": "account:dead+outcome",
            "stream_name": None,
            "position": 0,
            "batch_size": 100,
        }
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {compiled}", parameters).scalars())
    assert "messages_category" in plan
    assert "messages_stream" in plan
    assert "Seq Scan" not in plan


def test_the_dead_letters_of_all_categories_come_one_category_after_another(each_store: Store) -> None:
    for category in ("order:command", "account", "order", "account"):
        each_store.write(f"{category}-1", "Opened", {})
    for category in ("order", "account", "order:command", "$all"):
        consumer_on(each_store, category, _fail, "mailer", on_failure="park").run_until_caught_up()
    # Neither the outcomes nor a category whose name only looks similar.
    each_store.write("undead-1", "Walked", {})
    each_store.discard_dead_letters([*each_store.iter_dead_letters("account")][:1])
    of = {name: [*each_store.iter_dead_letters(name)] for name in ("$all", "account", "order:command", "order")}
    assert [len(each) for each in of.values()] == [4, 1, 1, 1]
    # In the order of $all:dead, account:dead, order:command+dead, order:dead.
    expected = [letter for letters in of.values() for letter in letters]
    for batch_size in (1, 2, 100):
        assert [*each_store.iter_dead_letters(batch_size=batch_size)] == expected


def test_dead_letters_are_looked_for_among_the_last_parked_ones(each_store: Store) -> None:
    for category in ("account", "order"):
        for n in range(5):
            each_store.write(f"{category}-{n}", "Opened", {})
        consumer_on(each_store, category, _fail, on_failure="park").run_until_caught_up()
    every = {name: [*each_store.iter_dead_letters(name)] for name in ("account", "order")}
    # The last but one is resolved: it counts, and is not returned.
    for letters in every.values():
        assert each_store.discard_dead_letters([letters.pop(-2)]) == 1
    for looked_at, open_ones in ((1, 1), (2, 1), (4, 3), (5, 4), (9, 4)):
        expected = {name: letters[-open_ones:] for name, letters in every.items()}
        for batch_size in (1, 2, 100):
            options: dict[str, Any] = {"batch_size": batch_size, "no_of_messages": looked_at}
            for name, letters in expected.items():
                assert [*each_store.iter_dead_letters(name, **options)] == letters
            assert [*each_store.iter_dead_letters(**options)] == expected["account"] + expected["order"]
    assert [*each_store.iter_dead_letters("nothing", no_of_messages=1)] == []


@pytest.mark.parametrize("category", ["account", None])
@pytest.mark.parametrize("no_of_messages", [0, -1, "7", 1.5, True])
def test_a_number_of_parked_messages_that_cannot_be_is_refused(
    each_store: Store, category: str | None, no_of_messages: Any
) -> None:
    with pytest.raises(InvalidArgument, match="no_of_messages"):
        each_store.iter_dead_letters(category, no_of_messages=no_of_messages)


def test_a_dead_letter_is_read_by_its_id_until_it_is_resolved(each_store: Store) -> None:
    for category in ("account", "order:command"):
        each_store.write(f"{category}-1", "Opened", {})
        consumer_on(each_store, category, _fail, on_failure="park").run_until_caught_up()
    for letter in [*each_store.iter_dead_letters()]:
        assert each_store.read_dead_letter(letter.id) == each_store.read_dead_letter(UUID(letter.id)) == letter
        # Neither the message that failed nor what became of it is a dead letter.
        assert each_store.read_dead_letter(letter.message.id) is None
        each_store.discard_dead_letters([letter])
        assert each_store.read_dead_letter(letter.id) is None


@pytest.mark.parametrize("id", [None, "7", 7])
def test_the_id_of_a_dead_letter_must_be_a_uuid(store: Store, id: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^id="):
        store.read_dead_letter(id)


def _fail(_: object) -> None:
    raise ValueError("no")
