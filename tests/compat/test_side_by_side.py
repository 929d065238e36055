"""The original message-db-py and ours, with the same calls; without pip these tests are skipped."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import psycopg2  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import NullPool, create_engine

from messagedb_sa import compat, install
from messagedb_sa.compat import MessageDB
from messagedb_sa.store._json_codec import unstorable_part
from messagedb_sa.testing import temporary_database

from ..support import examples
from .support import OWN_SQL, SEARCH_PATH, libpq


class Pair:
    """The original and ours, each on a database of its own, or both on ours."""

    def __init__(self, original: Any, beside: Any, ours: MessageDB) -> None:
        self.original = original
        self.beside = beside
        self.ours = ours

    def empty(self) -> None:
        for client in (self.original, self.ours):
            connection = client.connection_pool.get_connection()
            with connection, connection.cursor() as cursor:
                cursor.execute("TRUNCATE message_store.messages RESTART IDENTITY")
            client.connection_pool.release(connection)

    def clients(self) -> list[Any]:
        return [self.original, self.beside, self.ours]


@pytest.fixture(scope="module")
def pair(client: Any, messagedb_server_url: str, messagedb_url: str) -> Iterator[Pair]:
    with temporary_database(messagedb_server_url) as other:
        install.upgrade(create_engine(other, poolclass=NullPool))
        options = {"options": SEARCH_PATH}
        pair = Pair(
            client.MessageDB.from_url(libpq(other), **options),
            client.MessageDB.from_url(libpq(messagedb_url), **options),
            MessageDB.from_url(libpq(messagedb_url), **options),
        )
        yield pair
        for each in pair.clients():
            each.connection_pool.closeall()


def outcome(client: Any, call: tuple[str, tuple[Any, ...]]) -> Any:
    """What comes back; or an error's class, text and cause; of the driver's errors the first line."""
    method, arguments = call
    try:
        return getattr(client, method)(*arguments)
    except psycopg2.Error as error:
        return type(error), str(error).partition("\n")[0]
    except (ValueError, TypeError, LookupError) as error:
        return type(error), str(error), type(error.__cause__)


NAMES = ["a", "a-1", "a-2", "a-1+3", "a_b-1", "a:snapshot-1", "b", "b-1-2", "b-é", "$all", "$all-1"]


names = st.sampled_from(NAMES)


letters = st.text("aé\\\"'%:$😀\x01\ud800", max_size=4)


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | letters,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(letters | st.integers(0, 9), inner, max_size=3),
    max_leaves=5,
)


documents = st.dictionaries(st.text("ab%:", max_size=2), values, max_size=3)


metadatas = st.none() | values


versions = st.none() | st.integers(-1, 3)


types = st.sampled_from(["Opened", "ü%s:x"])


# In a batch, what JSON cannot hold is refused before the version is compared, not after.
storable = documents.filter(lambda document: not unstorable_part(json.loads(json.dumps(document))))


records = st.tuples(types, storable) | st.tuples(types, storable, st.none() | storable)


writes = st.tuples(names, types, documents, metadatas, versions).map(lambda a: ("write", a)) | st.tuples(
    names, st.lists(records, min_size=1, max_size=3), versions
).map(lambda a: ("write_batch", a))


@settings(max_examples=examples(60))
@given(st.lists(writes, max_size=12))
def test_the_original_and_ours_write_the_same(pair: Pair, calls: list[Any]) -> None:
    pair.empty()
    for call in calls:
        assert outcome(pair.original, call) == outcome(pair.ours, call), call
    without = {"id": None, "time": None}
    originals, ours = ([message | without for message in each.read("$all")] for each in (pair.original, pair.ours))
    assert originals == ours
    for name in NAMES:
        assert outcome(pair.beside, ("read", (name,))) == outcome(pair.ours, ("read", (name,)))


def test_the_original_and_ours_read_the_same(pair: Pair) -> None:
    pair.empty()
    for n in range(3):
        for name in NAMES:
            pair.original.write(name, "T", {"n": n})
            pair.ours.write(name, "T", {"n": n}, {"by": name} if n else None)
    pages = [(position, limit) for position in (-1, 0, 1, 2, 3, 20, 33, 34) for limit in (0, 1, 5, 1000)]
    groups = [(None, None), (None, 2), *((member, size) for member in (-1, 0, 1, 2) for size in (None, 0, 1, 2))]
    calls: list[tuple[str, tuple[Any, ...]]] = [
        *(("read", (name, sql, *page)) for name in NAMES for sql in (None, "", OWN_SQL) for page in pages),
        *(("read", (name, "SELECT * FROM get_stream_messages('a-1')", *page)) for name in NAMES for page in pages),
        *(("read_stream", (name, *page)) for name in NAMES for page in pages),
        *(("read_category", (name, *page)) for name in NAMES for page in pages),
        *(("read_category", (name, 0, 1000, *group)) for name in NAMES for group in groups),
        *(("read_last_message", (name,)) for name in [*NAMES, "none", "none-1"]),
        *(("stream_identifiers", (name,)) for name in ("a", "a-1", "b", "a:snapshot", "none")),
    ]
    for call in calls:
        assert outcome(pair.beside, call) == outcome(pair.ours, call), call


@pytest.mark.parametrize(
    "call",
    [
        ("write", ("a-1", "Opened", {"n": {1}})),
        ("write", ("a-1", "Opened", {"n": float("inf")})),
        ("write", ("a-1\nb", "Opened", {}, None, 5)),
        ("write_batch", ("a-1", [("Opened",)])),
        ("write_batch", ("a-1", None)),
        ("read", ("a-1", "SELECT * FROM no_such_table")),
        ("read", ("a-1", "SELECT no_such_column FROM messages")),
        ("read", ("a-1", "SELECT * FROM messages WHERE 1 / %(position)s = 1")),
        ("read", ("a-1", "SELECT get_stream_messages(stream_name, 0, '100%%') FROM messages; ")),
        ("read", (None,)),
        ("read_stream", (None,)),
        ("read_category", (None,)),
        ("stream_identifiers", (None,)),
        ("read", ("a-1", None, 0, 10, 5, 2)),
        ("read", ("a", None, 0, 10, None, 2)),
        ("read", ("a", None, 0, 10, 0, 2)),
        (
            "read",
            ("a-1", "SELECT * FROM get_category_messages('a', 0, 9, NULL, %(consumer_group_member)s, 2)", 0, 9, 1, 2),
        ),
    ],
    ids=repr,
)
def test_the_original_and_ours_give_the_same_errors(pair: Pair, call: Any) -> None:
    pair.empty()
    pair.ours.write("a-1", "Opened", {"n": 1})
    assert outcome(pair.beside, call) == outcome(pair.ours, call)


@pytest.mark.parametrize("name", ["MessageDB", "ConnectionPool"])
def test_the_original_and_ours_have_the_same_signatures(client: Any, name: str) -> None:
    original, ours = getattr(client, name), getattr(compat, name)
    for method in ("__init__", *(each for each in vars(original) if not each.startswith("_"))):
        theirs, own = (inspect.signature(getattr(each, method)).parameters.values() for each in (original, ours))
        assert [(p.name, p.kind, p.default) for p in own] == [(p.name, p.kind, p.default) for p in theirs], method
