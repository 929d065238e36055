"""How far consumers are: Store.consumers, and the progress bar."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.schema import CreateIndex

from messagedb_sa import Consumer, InvalidArgument, Store, install
from messagedb_sa.schema import consumer_group_index
from messagedb_sa.store._consumer_status import _COUNTED_UP_TO
from messagedb_sa.store._position_statements import READS_BY_INDEX, READS_OF_CATEGORY_BY_INDEX
from messagedb_sa.stream_name import consumer_group_member

from ..support import consumer_on
from .support import write


def test_the_consumers_of_a_category_and_how_far_they_are(each_store: Store) -> None:
    write(each_store, 6)
    consumer_on(each_store, "account", lambda _: None).run_until_caught_up()
    consumer_on(each_store, "account", lambda _: None, "mailer").run_until_caught_up()
    consumer_on(each_store, "account", lambda _: None, "shared", slots=3).run_until_caught_up()
    after = {number: each_store.write(f"account-{number}", "Even", {}) for number in range(3)}
    assert len(after) == 3
    first = each_store.read("account", position=7)[0]
    alone, mailer, *shared = each_store.consumers("account")
    assert alone[:5] == ("account", None, None, None, 6)
    assert mailer[:5] == ("account", "mailer", None, None, 6)
    assert (alone.lag, alone.waiting_since) == (mailer.lag, mailer.waiting_since) == (3, first.time)
    assert [each[:4] for each in shared] == [("account", "shared", member, 3) for member in range(3)]
    assert sum(each.lag or 0 for each in shared) == 3
    by_member = [consumer_group_member(f"account-{number}", 3) for number in range(3)]
    assert [each.lag for each in shared] == [by_member.count(member) for member in range(3)]
    # Nothing has been recorded by a member without messages.
    assert [each.position is None for each in shared] == [member not in by_member for member in range(3)]
    assert [each.waiting_since is None for each in shared] == [each.lag == 0 for each in shared]
    recorded = each_store.read_last_message("account:position-mailer")
    assert recorded is not None
    assert mailer.recorded_at == recorded.time
    assert each_store.consumers("other") == []


def test_the_consumers_of_all_and_how_far_they_are(store: Store) -> None:
    write(store, 2)
    Consumer(store, "$all", lambda _: None, "mirror").run_until_caught_up()
    write(store, 2, "order")
    (mirror,) = store.consumers("$all")
    assert (mirror.category, mirror.identifier, mirror.position, mirror.lag) == ("$all", "mirror", 2, 2)


def test_the_consumers_of_every_category_in_both_homes(each_store: Store) -> None:
    for category in ("order", "account", "account:command"):
        write(each_store, 3, category)
    consumer_on(each_store, "order", lambda *_: None, "b", transactional=True).run_until_caught_up()
    consumer_on(each_store, "order", lambda *_: None, "a").run_until_caught_up()
    consumer_on(each_store, "account:command", lambda _: None, "c", slots=2).run_until_caught_up()
    consumer_on(each_store, "$all", lambda _: None).run_until_caught_up()
    write(each_store, 2, "order")
    found = each_store.consumers()
    assert [each[:4] for each in found] == [
        ("$all", None, None, None),
        ("account:command", "c", 0, 2),
        ("account:command", "c", 1, 2),
        ("order", "a", None, None),
        ("order", "b", None, None),
    ]
    assert [each.lag for each in found] == [2, 0, 0, 2, 2]
    assert [each.recorded_in for each in found][3:] == ["stream", "table"]
    for category in ("$all", "account:command", "order"):
        assert each_store.consumers(category) == [each for each in found if each.category == category]


def test_without_counting_only_the_age_is_known(each_store: Store) -> None:
    write(each_store, 6)
    for options in ({}, {"slots": 3, "identifier": "shared"}, {"transactional": True, "identifier": "rows"}):
        consumer_on(each_store, "account", lambda *_: None, **options).run_until_caught_up()
    consumer_on(each_store, "$all", lambda _: None).run_until_caught_up()
    consumer_on(each_store, "other:position", lambda _: None, position=1).run_until_caught_up()
    each_store.write("other:position-7", "Bought", {})
    write(each_store, 2)
    counted, found = each_store.consumers(), each_store.consumers(lag=False)
    assert len(found) == 7
    assert {each.lag for each in found} == {None}
    assert [each._replace(lag=None) for each in counted] == found
    assert sum(each.waiting_since is not None for each in found) > 3
    assert each_store.consumers(max_lag=100) == counted


def test_up_to_a_number_of_messages_the_lag_is_exact_and_beyond_it_is_not_counted(each_store: Store) -> None:
    write(each_store, 6)
    consumer_on(each_store, "account", lambda *_: None).run_until_caught_up()
    consumer_on(each_store, "account", lambda *_: None, "shared", slots=2).run_until_caught_up()
    consumer_on(each_store, "$all", lambda _: None).run_until_caught_up()
    write(each_store, 3)
    exact = {each[:4]: each.lag for each in each_store.consumers()}
    # The positions of the others are among the messages that $all has before it, and are not counted.
    assert sorted(filter(None, exact.values())) == [1, 2, 3, 3]
    # Also of a slot, whose own may be fewer: the messages of the category are what is read.
    assert [each.lag for each in each_store.consumers("account", max_lag=2)] == [None] * 3
    assert each_store.consumers("account", max_lag=3)[0].lag == 3
    assert {each[:4]: each.lag for each in each_store.consumers(max_lag=20)} == exact
    assert [each.waiting_since for each in each_store.consumers(max_lag=0)] == [
        each.waiting_since for each in each_store.consumers(lag=False)
    ]


@pytest.mark.parametrize("category", ["account", "$all"])
def test_counting_up_to_a_number_reads_no_more_messages_than_that(store: Store, category: str) -> None:
    store.write("account:position-slow", "Recorded", {"position": 0})
    store.write("$all:position-slow", "Recorded", {"position": 0})
    with store.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO message_store.messages (stream_name, position, type, data)"
                " SELECT 'account-1', n, 'Opened', '{}' FROM generate_series(0, 19999) AS n"
            )
        )
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE message_store.messages"))
    statement: Any = _COUNTED_UP_TO[2 if category == "$all" else 0]
    compiled = statement.compile(dialect=store.engine.dialect)
    arrays = {"categories": [category], "members": [None], "sizes": [None], "positions": [0]}
    parameters = {**compiled.params, **arrays, "limit": 101}
    with store.engine.connect() as connection:
        explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {compiled}", parameters)
        plan = explained.scalars().one()[0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 120
    assert [each.lag for each in store.consumers(category, max_lag=100)] == [None]


@pytest.mark.parametrize(
    "stream", ["account:position-0-of-0", "account:position-9-of-3", "account:position-1-of-99999", "account:position"]
)
def test_a_name_that_no_member_has_is_an_identifier(store: Store, stream: str) -> None:
    write(store, 2)
    store.write(stream, "Recorded", {"position": 1})
    identifier = stream.partition("-")[2] or None
    for lag in (False, True):
        (status,) = store.consumers("account", lag=lag)
        assert (status.identifier, status.group_size, status.lag) == (identifier, None, 1 if lag else None)
        assert status.waiting_since is not None


@pytest.mark.parametrize("lag", [True, False])
def test_the_highest_position_of_one_consumer_does_not_hide_the_others(store: Store, lag: bool) -> None:
    write(store, 3)
    Consumer(store, "account", lambda _: None, "mailer").run_until_caught_up()
    for position in (2**63 - 2, 2**63 - 1):
        store.write(f"account:position-{position}", "Recorded", {"position": position})
    assert [status.position for status in store.consumers(lag=lag)] == [2**63 - 2, 3]


def test_a_store_without_the_index_finds_the_same(empty_database: Engine) -> None:
    install.upgrade(empty_database)
    store = Store(empty_database)
    write(store, 3)
    write(store, 3, "order")
    for category in ("order", "account", "$all"):
        Consumer(store, category, lambda _: None, "mailer", record_every=1).run_until_caught_up()
    store.write("account:position-mailer", "Recorded", {"position": None})
    found = store.consumers()
    with store.engine.begin() as connection:
        connection.execute(text("DROP INDEX message_store.messages_recorded"))
    assert store.consumers() == found
    assert [(each.category, each.position) for each in found] == [("$all", 6), ("account", 3), ("order", 6)]


@pytest.mark.parametrize("analyzed", [True, False])
def test_finding_consumers_reads_as_much_after_many_records_as_after_few(
    empty_database: Engine, analyzed: bool
) -> None:
    """Also while PostgreSQL's statistics are from before the first record."""
    install.upgrade(empty_database)
    store = Store(empty_database)
    write(store, 3)
    store.write_batch("account-1", [("Opened", {})] * 10_000)

    def vacuum() -> None:
        with store.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(
                text("VACUUM ANALYZE message_store.messages")
            )

    def record(first: int, last: int) -> None:
        query = text(
            "INSERT INTO message_store.messages (stream_name, position, type, data)"
            " SELECT 'account:position-' || n % 10, n / 10, 'Recorded', jsonb_build_object('position', n)"
            " FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n"
        )
        with store.engine.begin() as connection:
            connection.execute(query, {"first": first, "last": last})
        if analyzed:
            vacuum()

    def blocks_read(statement: Any) -> int:
        compiled = statement.compile(dialect=store.engine.dialect)
        parameters = {**compiled.params, "category": "account:position"}
        with store.engine.connect() as connection:
            explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {compiled}", parameters)
            plan = explained.scalars().one()[0]["Plan"]
        assert plan["Actual Rows"] == 10
        blocks: int = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        return blocks

    statements = READS_BY_INDEX[True], READS_OF_CATEGORY_BY_INDEX[True]
    vacuum()
    record(0, 99)
    few = [blocks_read(each) for each in statements]
    record(100, 99_999)
    many = [blocks_read(each) for each in statements]
    # The index is some levels deeper then, and there are eleven lookups.
    assert all(after <= before + 4 * 11 for before, after in zip(few, many, strict=True)), (few, many)
    assert [each.position for each in store.consumers("account", lag=False)] == list(range(99_990, 100_000))


def test_the_cost_of_a_look_does_not_grow_with_messages_and_records(empty_database: Engine) -> None:
    """As monitoring does it, every few seconds."""
    install.upgrade(empty_database)
    store = Store(empty_database)
    with empty_database.begin() as connection:
        connection.execute(CreateIndex(consumer_group_index(2)))
    statements: list[tuple[str, Any]] = []

    def keep(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    def add(query: str, first: int, last: int) -> None:
        with empty_database.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO message_store.messages (stream_name, position, type, data)"
                    f" SELECT {query} FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n"
                ),
                {"first": first, "last": last},
            )

    def add_all(first: int, last: int) -> None:
        """Messages of one stream, messages of another category, and then positions of consumers of that."""
        # A fifth, since they are handled; a look that passed them all would show all the same.
        add("'account-1', n, 'Opened', '{}'", first, first + last // 5)
        add("'other-1', n, 'Opened', '{}'", first, first + last // 5)
        Consumer(store, "account", lambda _: None).run_until_caught_up()
        Consumer(store, "account", lambda _: None, "shared", slots=2).run_until_caught_up()
        add("'other:position-' || n % 10, n / 10, 'Recorded', jsonb_build_object('position', n)", first, last)
        Consumer(store, "$all", lambda _: None, "mirror").run_until_caught_up()
        with empty_database.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(
                text("VACUUM ANALYZE message_store.messages")
            )

    def blocks_read() -> int:
        event.listen(empty_database, "before_cursor_execute", keep)
        statements.clear()
        found = store.consumers(lag=False)
        event.remove(empty_database, "before_cursor_execute", keep)
        assert len(found) == 14
        blocks = 0
        with empty_database.connect() as connection:
            for statement, parameters in statements:
                explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
                plan = connection.exec_driver_sql(explain, parameters).scalars().one()[0]["Plan"]
                blocks += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        return blocks

    add_all(0, 99)
    few = blocks_read()
    add_all(100, 99_999)
    many = blocks_read()
    # The indexes are some levels deeper, and a consumer of $all has passed a thousand messages at most in vain.
    assert many <= few + 4 * 50 + 1000, (few, many)


def test_a_consumer_of_all_records_its_position_after_many_messages_that_it_skips(each_store: Store) -> None:
    write(each_store, 1)
    mirror = consumer_on(each_store, "$all", lambda _: None, "mirror")
    assert mirror.run_until_caught_up() == 1
    for count in (300, 300, 2000):
        each_store.write_batch("other:position-1", [("Recorded", {"position": 1})] * count)
        before = each_store.consumers("$all")[0].position
        assert mirror.run_until_caught_up() == 0
        (status,) = each_store.consumers("$all")
        # Fewer than a thousand of each run make no record of their own.
        assert (status.position == before) == (count == 300)
    assert mirror.run_until_caught_up() == 0
    assert each_store.consumers("$all")[0] == status
    assert len(each_store.read("$all:position-mirror")) == 2


@pytest.mark.parametrize("lag", [None, 1, "yes"])
def test_lag_is_true_or_false(store: Store, lag: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^lag="):
        store.consumers(lag=lag)


@pytest.mark.parametrize("options", [{"max_lag": -1}, {"max_lag": "7"}, {"max_lag": 7, "lag": False}])
def test_the_bound_of_counting_must_be_a_number_and_needs_counting(store: Store, options: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^max_lag="):
        store.consumers(**options)


@pytest.mark.parametrize("progress", [False, None])
def test_no_progress_is_shown_unless_it_is_asked_for_or_on_a_terminal(
    store: Store, capsys: pytest.CaptureFixture[str], progress: bool | None
) -> None:
    write(store, 5)
    assert Consumer(store, "account", lambda _: None, "mailer").run_until_caught_up(progress=progress) == 5
    assert capsys.readouterr().err == ""


def test_progress_is_shown_if_it_is_asked_for(each_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    write(each_store, 5)
    consumer_on(each_store, "account", lambda _: None, "mailer").run_until_caught_up(progress=True)
    assert "account mailer: 100%" in (shown := capsys.readouterr().err)
    assert "5/5" in shown


def test_progress_advances_with_each_message(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, 3)
    shown: list[int] = []
    monkeypatch.setattr("tqdm.tqdm.update", lambda bar, n=1: shown.append(n))
    Consumer(store, "account", lambda _: shown.append(0), "mailer").run_until_caught_up(progress=True)
    assert shown == [0, 1, 0, 1, 0, 1]
