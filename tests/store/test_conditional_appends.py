"""Append if nothing relevant has happened: reads by query, and conditions of writes."""

from __future__ import annotations

import asyncio
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import (
    AppendCondition,
    AppendConditionFailed,
    AsyncStore,
    InvalidArgument,
    MessageNotDecodable,
    MessageTypes,
    NewMessage,
    Query,
    QueryResult,
    Store,
    WrongExpectedVersion,
)

from ..support import NESTED, insert, nested_is_refused, numbers, on, statements_of
from .support import usable


def tagged(type_: str, *tags: str, n: int = 0) -> NewMessage:
    return NewMessage(type_, {"n": n}, {"tags": list(tags)})


def beside(store: Store) -> Store:
    """Another store on the same database, which is not asynchronous."""
    return Store(create_engine(store.engine.url.set(drivername="postgresql"), poolclass=NullPool))


def fill(store: Store) -> None:
    """Numbered from 0; messages 1 and 4 are of another category."""
    store.write_batch("course-1", [tagged("Opened", "course:1", n=0)])
    store.write_batch("student-1", [tagged("Joined", "student:1", n=1)])
    store.write_batch("course-2", [tagged("Opened", "course:2", n=2)])
    store.write_batch("course-1", [tagged("Subscribed", "course:1", "student:1", n=3)])
    store.write_batch("student-1", [NewMessage("Left", {"n": 4})])
    store.write_batch("course-2", [tagged("Subscribed", "student:1", "course:2", n=5), NewMessage("Closed", {"n": 6})])


QUERIES: list[tuple[Any, list[int]]] = [
    (Query("course"), [0, 2, 3, 5, 6]),
    (Query("course", types=["Opened"]), [0, 2]),
    (Query("course", types=("Opened", "Closed")), [0, 2, 6]),
    (Query("course", tags=["course:1"]), [0, 3]),
    (Query("course", tags=["course:1", "student:1"]), [3]),
    (Query("course", ["Subscribed"], ["student:1"]), [3, 5]),
    (Query("course", ["Opened"], ["student:1"]), []),
    (Query("course", tags=["course"]), []),
    (Query("nobody"), []),
    ([Query("course", ["Closed"]), Query("course", tags=["course:1"])], [0, 3, 6]),
    ([Query("course", tags=["course:1"]), Query("course", tags=["student:1"])], [0, 3, 5]),
    ([Query("student", ["Left"]), Query("course", tags=["course:2"])], [2, 4, 5]),
    ((Query("student", tags=["student:1"]),), [1]),
]


def test_a_message_matches_by_one_of_the_types_and_all_of_the_tags(each_kind: Store) -> None:
    fill(each_kind)
    for queries, expected in QUERIES:
        found = each_kind.read_query(queries)
        assert numbers(found) == expected
        assert found == [message for message in each_kind.read("$all") if message in found]
        assert numbers(each_kind.read_query(queries, position=4)) == [n for n in expected if n >= 3]
        assert numbers(each_kind.read_query(queries, no_of_messages=2)) == expected[:2]
        assert numbers(each_kind.iter_query(queries, batch_size=1)) == expected
        assert numbers(each_kind.iter_query(queries, 4, batch_size=2)) == [n for n in expected if n >= 3]


def test_names_may_have_any_characters(each_kind: Store) -> None:
    odd = ["'", '"', "\\", "%s", ":a", "{", "[]", "null", "é", "𝄞", "\n", "?", "$1", " ", "\\'; "]
    for n, each in enumerate(odd):
        each_kind.write_batch(f"c{each}-1", [tagged(each, each, "all", n=n)])
    for n, each in enumerate(odd):
        assert numbers(each_kind.read_query(Query(f"c{each}", [each], ["all", each]))) == [n]
        condition = AppendCondition(Query(f"c{each}", [each], [each]), after=n)
        with pytest.raises(AppendConditionFailed) as caught:
            each_kind.write_batch("c-1", [("T", {})], condition=condition)
        error = caught.value
        assert (error.stream_name, error.type, error.global_position, error.after) == (f"c{each}-1", each, n + 1, n)


def test_what_other_clients_write_as_tags_matches_only_if_it_is_a_list_of_them(each_kind: Store) -> None:
    for number, metadata in enumerate(
        ['{"tags": "a"}', '{"tags": {"a": 1}}', '["a"]', '"a"', "null", None, '{"tags": [["a"]]}', '{"tags": ["a", 1]}']
    ):
        insert(beside(each_kind), "course-1", number, "T", f'{{"n": {number}}}', metadata=metadata)
    assert numbers(each_kind.read_query(Query("course", tags=["a"]))) == [7]


def test_a_condition_holds_until_a_message_comes_that_matches(each_kind: Store) -> None:
    fill(each_kind)
    known = each_kind.read_query(Query("course", ["Subscribed"], ["course:1"]))
    each_kind.write_batch("course-9", [tagged("Subscribed", "course:2"), tagged("Closed", "course:1")])
    each_kind.write_batch("other-1", [tagged("Subscribed", "course:1")])
    assert each_kind.write_batch("course-1", [tagged("Subscribed", "course:1")], condition=known.condition) == 2
    with pytest.raises(AppendConditionFailed) as caught:
        each_kind.write_batch("course-1", [tagged("Subscribed", "course:1")], condition=known.condition)
    error = caught.value
    assert (error.stream_name, error.type, error.global_position, error.after) == ("course-1", "Subscribed", 11, 7)
    assert str(error) == (
        "a message of type 'Subscribed' matches the condition: it came to stream 'course-1' at global position 11, "
        "and none was to come after 7"
    )
    assert each_kind.stream_version("course-1") == 2


def test_the_first_that_matches_is_reported_whichever_query_it_matches(each_kind: Store) -> None:
    queries = [Query("student"), Query("course", ["B"]), Query("course", ["A"])]
    condition = each_kind.read_query(queries).condition
    for stream, type_ in (("course-1", "C"), ("course-1", "A"), ("course-1", "B"), ("student-1", "A")):
        each_kind.write(stream, type_, {})
    with pytest.raises(AppendConditionFailed) as caught:
        each_kind.write_streams([("note-1", [("T", {})])], condition=condition)
    assert (caught.value.stream_name, caught.value.type, caught.value.global_position) == ("course-1", "A", 2)


def test_after_0_nothing_may_match_at_all(each_kind: Store) -> None:
    never = AppendCondition(Query("user", ["Registered"], ["email:ada@example.org"]))
    assert never.after == {"user": 0}
    registered = tagged("Registered", "email:ada@example.org")
    assert each_kind.write_batch("user-1", [registered], condition=never) == 0
    with pytest.raises(AppendConditionFailed):
        each_kind.write_batch("user-2", [registered], condition=never)
    assert each_kind.stream_version("user-2") == -1


def test_a_decision_on_nothing_has_a_condition_too(each_kind: Store) -> None:
    each_kind.write("course-1", "Opened", {})
    found = each_kind.read_query([Query("course", tags=["a"]), Query("nobody", ["T"])])
    assert found == []
    assert found.condition.after == {"course": 1, "nobody": 0}


def test_the_expected_version_and_the_condition_must_both_hold(each_kind: Store) -> None:
    each_kind.write("course-1", "Opened", {})
    holds, fails = (AppendCondition(Query("course"), after) for after in (1, 0))
    with pytest.raises(AppendConditionFailed):
        each_kind.write_batch("course-1", [("T", {})], 0, condition=fails)
    for condition in (holds, fails):
        with pytest.raises(WrongExpectedVersion):
            each_kind.write_batch("course-1", [("T", {})], 7, condition=condition)
        with pytest.raises(WrongExpectedVersion):
            each_kind.write_streams([("note-1", [("T", {})]), ("course-1", [], 7)], condition=condition)
    assert len(each_kind.read("$all")) == 1
    written = each_kind.write_streams([("note-1", [("T", {})]), ("course-1", [], 0)], condition=holds)
    assert written == {"note-1": 0}


def test_it_may_be_about_categories_that_are_not_written_to(each_kind: Store) -> None:
    condition = each_kind.read_query([Query("limit"), Query("account")]).condition
    assert each_kind.write_streams([("account-1", [("T", {})]), ("note-1", [("T", {})])], condition=condition) == {
        "account-1": 0,
        "note-1": 0,
    }
    condition = each_kind.read_query([Query("limit")]).condition
    each_kind.write("limit-1", "Set", {})
    with pytest.raises(AppendConditionFailed):
        each_kind.write_batch("account-1", [("T", {})], condition=condition)


def test_a_stream_without_an_id_may_have_the_name_of_a_category_of_the_condition(each_kind: Store) -> None:
    condition = each_kind.read_query([Query("limit"), Query("account")]).condition
    assert each_kind.write_streams([("limit", [("T", {})]), ("account", [("T", {})])], condition=condition) == {
        "limit": 0,
        "account": 0,
    }
    with pytest.raises(AppendConditionFailed):
        each_kind.write_batch("limit", [("T", {})], condition=condition)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_a_failed_condition_leaves_the_callers_transaction_usable(store: Store, driver: str) -> None:
    def body(connection: Any) -> None:
        joined = Store(connection)
        condition = joined.read_query(Query("course")).condition
        assert joined.write_batch("course-1", [("T", {})], condition=condition) == 0
        # Its own messages count too.
        with pytest.raises(AppendConditionFailed):
            joined.write_batch("course-1", [("T", {})], condition=condition)
        assert usable(connection)
        condition = joined.read_query(Query("course")).condition
        assert joined.write_streams([("course-1", [("T", {})], 0)], condition=condition) == {"course-1": 1}

    on(driver, str(store.engine.url), body)
    assert store.stream_version("course-1") == 1


def test_queries_and_tags_may_be_many(each_kind: Store) -> None:
    tags = [f"tag:{n}" for n in range(200)]
    each_kind.write_batch("course-1", [tagged("T", *tags, n=7), tagged("T", "tag:7", n=8)])
    assert numbers(each_kind.read_query(Query("course", ["T"] * 200, tags * 2))) == [7]
    queries = [Query("course", tags=[tag]) for tag in tags]
    known = each_kind.read_query(queries)
    assert numbers(known) == [7, 8]
    assert each_kind.write_batch("course-1", [("T", {})], condition=known.condition) == 2
    with pytest.raises(AppendConditionFailed):
        each_kind.write_batch("course-1", [("T", {})], condition=AppendCondition(queries, 1))


def test_one_round_trip_serves_a_read_and_another_the_write(store: Store) -> None:
    store.write_batch("course-1", [tagged("Opened", "course:1")])
    sent = statements_of(store.engine)
    condition = store.read_query([Query("course"), Query("student", tags=["a"])]).condition
    store.write_batch("course-1", [("T", {})], condition=condition)
    assert len(sent) == 2


# ---- several categories


def test_a_lower_global_position_that_commits_later_is_not_overlooked(each_kind: Store) -> None:
    queries = [Query("a"), Query("b")]
    with beside(each_kind).engine.connect() as connection:
        Store(connection).write("b-1", "Late", {"n": 1})
        each_kind.write("a-1", "Early", {"n": 2})
        known = each_kind.read_query(queries)
        assert (numbers(known), known.condition.after) == ([2], {"a": 2, "b": 0})
        connection.commit()
    with pytest.raises(AppendConditionFailed) as caught:
        each_kind.write_batch("a-1", [("T", {})], condition=known.condition)
    error = caught.value
    assert (error.stream_name, error.global_position, error.after) == ("b-1", 1, 0)


@pytest.mark.parametrize("limit", [1, 2])
def test_neither_with_a_limit(store: Store, limit: int) -> None:
    with create_engine(store.engine.url).connect() as connection:
        Store(connection).write("b-1", "Late", {"n": 1})
        store.write("a-1", "Early", {"n": 2})
        store.write("a-1", "Early", {"n": 3})
        known = store.read_query([Query("a"), Query("b")], no_of_messages=limit)
        assert known.condition.after == {"a": 1 + limit, "b": 0}
        connection.commit()


def test_an_iteration_does_not_overlook_it(store: Store) -> None:
    with create_engine(store.engine.url).connect() as connection:
        Store(connection).write("b-1", "Late", {"n": 1})
        for n in (2, 3):
            store.write("a-1", "Early", {"n": n})
        found = store.iter_query([Query("a"), Query("b")], batch_size=1)
        seen = [next(found)]
        connection.commit()
        store.write("b-1", "Later", {"n": 4})
        seen += found
    assert numbers(seen) == [2, 1, 3, 4]


def test_a_read_from_a_position_returns_nothing_below_it_in_later_pages(store: Store) -> None:
    for n in range(1, 7):
        store.write(f"{'ab'[n % 2]}-1", "T", {"n": n})
    assert numbers(store.iter_query([Query("a"), Query("b")], 3, batch_size=1)) == [3, 4, 5, 6]


def test_with_a_limit_the_condition_is_about_what_comes_after_the_last_message(store: Store) -> None:
    store.write_batch("course-1", [("T", {"n": n}) for n in range(3)])
    known = store.read_query(Query("course"), no_of_messages=2)
    assert known.condition.after == {"course": 2}
    with pytest.raises(AppendConditionFailed) as caught:
        store.write_batch("course-1", [("T", {})], condition=known.condition)
    assert caught.value.global_position == 3
    assert store.read_query(Query("course"), no_of_messages=3).condition.after == {"course": 3}
    assert store.read_query(Query("course"), no_of_messages=4).condition.after == {"course": 3}
    assert store.read_query(Query("course"), no_of_messages=0).condition.after == {"course": 0}


# ---- with the store's other options


types = MessageTypes()


@types.register
@dataclass(frozen=True)
class Opened:
    title: str


def test_registered_classes_stand_for_their_types(store: Store) -> None:
    typed = Store(store.engine, types=types)
    query = Query("course", [Opened, "Closed"])
    condition = typed.read_query(query).condition
    assert typed.write_batch("course-1", [Opened("SQL")], condition=condition) == 0
    found = typed.read_query(query)
    assert [message.data for message in found] == [Opened("SQL")]
    with pytest.raises(AppendConditionFailed):
        typed.write_batch("course-1", [Opened("SQL")], condition=condition)
    with pytest.raises(InvalidArgument, match=r"^queries\[0\]\.types\[0\]=.*must be a class that is registered"):
        store.read_query(query)
    with pytest.raises(InvalidArgument, match=r"^condition\.queries\[0\]\.types\[0\]="):
        store.write_batch("course-1", [("T", {})], condition=condition)


def test_a_store_that_combines_writes_writes_on_a_condition(store: Store) -> None:
    combining = Store(store.engine, combine_writes=True)
    condition = AppendCondition(Query("course"))
    assert combining.write_batch("course-1", [("T", {})], condition=condition) == 0
    with pytest.raises(AppendConditionFailed):
        combining.write_streams([("course-1", [("T", {})])], condition=condition)


@nested_is_refused
def test_a_message_that_cannot_be_decoded_is_an_error_with_its_position(each_kind: Store) -> None:
    each_kind.write("course-1", "T", {})
    insert(beside(each_kind), "course-1", 1, "Nested", NESTED)
    with pytest.raises(MessageNotDecodable) as caught:
        each_kind.read_query(Query("course"))
    assert caught.value.global_position == 2
    assert numbers(each_kind.read_query(Query("course", ["Other"]))) == []
    found = iter(each_kind.iter_query(Query("course")))
    assert next(found).position == 0
    with pytest.raises(MessageNotDecodable):
        next(found)


def test_values_that_the_application_converts_itself_are_read_again(store: Store) -> None:
    import psycopg2.extensions as extensions  # type: ignore[import-untyped]

    store.write_batch("course-1", [tagged("Opened", "a", n=7)])
    engine = create_engine(store.engine.url)
    with engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        # All texts become lists.
        of_text = extensions.new_type((25, 1043), "LISTS", lambda value, _: None if value is None else [value])
        extensions.register_type(of_text, driver)
        found = Store(connection).read_query([Query("course", tags=["a"]), Query("other")])
    engine.dispose()
    assert numbers(found) == [7]
    assert found.condition.after == {"course": 1, "other": 0}


# ---- arguments


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Query("course-1"), "category"),
        (lambda: Query(""), "category"),
        (lambda: Query("$all-"), "category"),
        (lambda: Query("$all"), "category"),
        (lambda: Query(None), "category"),  # type: ignore[arg-type]
        (lambda: Query("course", "Opened"), "types"),
        (lambda: Query("course", Opened), "types"),  # type: ignore[arg-type]
        (lambda: Query("course", ["Opened", 7]), "types[1]"),  # type: ignore[list-item]
        (lambda: Query("course", [""]), "types[0]"),
        (lambda: Query("course", tags="course:1"), "tags"),
        (lambda: Query("course", tags={"course": 1}), "tags"),
        (lambda: Query("course", tags=[None]), "tags[0]"),  # type: ignore[list-item]
        (lambda: Query("course", tags=["a\0"]), "tags[0]"),
        (lambda: Query("course", tags=["\ud800"]), "tags[0]"),
        (lambda: AppendCondition([]), "queries"),
        (lambda: AppendCondition([Query("a")] * 1001), "queries"),
        (lambda: AppendCondition("course"), "queries"),  # type: ignore[arg-type]
        (lambda: AppendCondition(["course"]), "queries[0]"),  # type: ignore[list-item]
        (lambda: AppendCondition(Query("a"), -1), "after"),
        (lambda: AppendCondition(Query("a"), 2**63 - 1), "after"),
        (lambda: AppendCondition(Query("a"), None), "after"),  # type: ignore[arg-type]
        (lambda: AppendCondition(Query("a"), True), "after"),
        (lambda: AppendCondition(Query("a"), {"a": "1"}), "after['a']"),  # type: ignore[dict-item]
        (lambda: AppendCondition(Query("a"), {}), "after"),
        (lambda: AppendCondition(Query("a"), {"a": 1, "b": 1}), "after"),
        (lambda: AppendCondition([Query("a"), Query("b")], 7), "after"),
    ],
)
def test_a_query_or_condition_that_makes_no_sense_is_refused_when_it_is_made(make: Any, argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda store: store.read_query([]), "queries"),
        (lambda store: store.read_query("course"), "queries"),
        (lambda store: store.read_query([Query("course"), ("course",)]), "queries[1]"),
        (lambda store: store.read_query(AppendCondition(Query("course"))), "queries"),
        (lambda store: store.read_query(Query("course"), -1), "position"),
        (lambda store: store.read_query(Query("course"), 0, -2), "no_of_messages"),
        (lambda store: store.iter_query(Query("course"), batch_size=0), "batch_size"),
        (lambda store: store.write_batch("a-1", [("T", {})], condition=Query("course")), "condition"),
        (lambda store: store.write_batch("a-1", [("T", {})], condition=store.read_query(Query("course"))), "condition"),
        (lambda store: store.write_streams([("a-1", [("T", {})])], condition=7), "condition"),
        (lambda store: store.write("a-1", "T", {}, {"tags": "course:1"}), "metadata"),
        (lambda store: store.write("a-1", "T", {}, {"tags": [""]}), "metadata"),
        (lambda store: store.write("a-1", "T", {}, {"tags": ["a", 1]}), "metadata"),
        (lambda store: store.write("a-1", "T", {}, {"tags": None}), "metadata"),
        (lambda store: store.write_batch("a-1", [("T", {}, {"tags": {"a": 1}})]), "messages[0].metadata"),
    ],
)
def test_a_call_with_something_else_is_refused_before_anything_is_written(
    store: Store, call: Any, argument: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call(store)
    assert caught.value.argument == argument
    assert store.read("$all") == []


def test_tags_may_be_a_tuple_or_none_at_all(store: Store) -> None:
    store.write("course-1", "T", {"n": 0}, {"tags": ("a", "b")})
    store.write("course-1", "T", {"n": 1}, {"tags": []})
    assert numbers(store.read_query(Query("course", tags=["b"]))) == [0]


def test_queries_and_conditions_keep_what_they_were_made_of() -> None:
    type_names, tags, after = ["T"], ["a"], {"course": 7}
    query = Query("course", type_names, tags)
    condition = AppendCondition([query], after)
    type_names.append("U")
    tags.append("b")
    after["course"] = 0
    assert (query.types, query.tags, condition.after) == (("T",), ("a",), {"course": 7})
    assert query == Query("course", ("T",), ("a",))
    assert len({query, Query("course", ("T",), ("a",))}) == 1
    assert len({condition, AppendCondition(query, 7)}) == 1
    with pytest.raises(AttributeError):
        query.category = "other"  # type: ignore[misc]


def test_conditions_and_results_can_be_copied_and_pickled(store: Store) -> None:
    store.write("course-1", "T", {})
    found = store.read_query(Query("course", ["T"], ["a"]))
    for other in (copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert isinstance(other, QueryResult)
        assert other == found
        assert other.condition == found.condition


def test_two_threads_share_a_condition(store: Store) -> None:
    condition = store.read_query(Query("course")).condition

    def write(n: int) -> bool:
        try:
            return store.write_batch("course-1", [("T", {})], condition=condition) == 0
        except AppendConditionFailed:
            return False

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(write, range(4))) == [False, False, False, True]


def test_in_a_transaction_of_an_asynchronous_application_too(store: Store) -> None:
    async def decide(store: AsyncStore) -> int:
        known = await store.read_query(Query("course", tags=["course:1"]))
        assert [message async for message in store.iter_query(Query("course"))] == known
        return await store.write_batch("course-1", [tagged("T", "course:1")], condition=known.condition)

    async def run() -> None:
        engine = create_async_engine(store.engine.url.set(drivername="postgresql+asyncpg"))
        async with engine.begin() as connection:
            joined = AsyncStore(connection)
            condition = AppendCondition(Query("course", tags=["course:1"]))
            assert [await decide(joined), await decide(joined)] == [0, 1]
            with pytest.raises(AppendConditionFailed):
                await joined.write_streams([("course-1", [("T", {})])], condition=condition)
        await engine.dispose()

    asyncio.run(run())
    assert store.stream_version("course-1") == 1
