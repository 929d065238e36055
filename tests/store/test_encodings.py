"""Databases whose encoding is not UTF8: what they do not have is refused by argument, and the rest works."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from messagedb_sa import AppendCondition, InvalidArgument, NewMessage, Query, Store, install

from ..support import DRIVERS, store_on

EMOJI = "\U0001f600"
# In UTF-8 the client can send everything, and the server refuses it. asyncpg always does.
IN_UTF8: dict[str, Any] = {
    "psycopg2": {"connect_args": {"client_encoding": "UTF8"}},
    "psycopg": {"connect_args": {"client_encoding": "UTF8"}},
    "psycopg_async": {"connect_args": {"client_encoding": "UTF8"}},
    "asyncpg": {},
}


def database_in(encoding: str, server_url: str) -> Iterator[str]:
    name = f"messagedb_{uuid4().hex[:16]}"
    admin = create_engine(server_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        made = f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        connection.execute(text(made))
    url = make_url(server_url).set(database=name)
    install.upgrade(create_engine(url, poolclass=NullPool, **IN_UTF8["psycopg2"]))
    yield url.render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="module")
def latin1(messagedb_server_url: str) -> Iterator[str]:
    yield from database_in("LATIN1", messagedb_server_url)


@pytest.fixture(scope="module", params=["EUC_JP", "KOI8R", "WIN1252", "EUC_TW"])
def other(request: pytest.FixtureRequest, messagedb_server_url: str) -> Iterator[tuple[str, str]]:
    for url in database_in(request.param, messagedb_server_url):
        yield request.param, url


CALLS: list[tuple[Callable[[Store], Any], str, object]] = [
    (lambda s: s.write("a-1", "T", {"a": [EMOJI]}), "data", {"a": [EMOJI]}),
    (lambda s: s.write("a-1", "T", {}, {"by": EMOJI}), "metadata", {"by": EMOJI}),
    (lambda s: s.write(f"a-{EMOJI}", "T", {}), "stream_name", f"a-{EMOJI}"),
    (lambda s: s.write("a-1", EMOJI, {"é": 1}), "message_type", EMOJI),
    (lambda s: s.write_batch("a-1", [("T", {"é": 1}), ("T", {"a": EMOJI})]), "messages[1].data", {"a": EMOJI}),
    (lambda s: s.write_batch("a-1", [("T", 1), ('"\\', 2), (f'{EMOJI}"', 3)]), "messages[2].type", f'{EMOJI}"'),
    (lambda s: s.write_batch("a-1", [NewMessage("T", 1, {"by": EMOJI})]), "messages[0].metadata", {"by": EMOJI}),
    (lambda s: s.write_batch(EMOJI, [("T", {})]), "stream_name", EMOJI),
    (
        lambda s: s.read_query(Query("course", tags=["a", EMOJI])),
        "queries",
        f'[{{"category": "course", "position": 0, "tags": ["a", "{EMOJI}"]}}]',
    ),
    (
        lambda s: s.write_batch("a-1", [("T", {})], condition=AppendCondition(Query(EMOJI, ["T"]))),
        "queries",
        f'[{{"category": "{EMOJI}", "position": 1, "types": ["T"]}}]',
    ),
    (
        lambda s: s.write_batch("a-1", [("T", {}), ("T", {"a": EMOJI})], condition=AppendCondition(Query("b"))),
        "messages[1].data",
        {"a": EMOJI},
    ),
    (
        lambda s: s.write_streams([("b-1", [("T", 1)]), ("a-1", [("T", 1), ("T", EMOJI)])]),
        "writes['a-1'].messages[1].data",
        EMOJI,
    ),
    (
        lambda s: s.write_streams([("b-1", [("T", 1)]), ("a-1", [("T", 1), (EMOJI, 1)])]),
        "writes['a-1'].messages[1].type",
        EMOJI,
    ),
    (
        lambda s: s.write_streams([("b-1", [("T", 1)]), (EMOJI, [("T", 1)])]),
        f"writes[{EMOJI!r}].stream_name",
        EMOJI,
    ),
    (lambda s: s.read(f"a-{EMOJI}"), "stream_name", f"a-{EMOJI}"),
    (lambda s: s.read(EMOJI), "category_name", EMOJI),
    (lambda s: s.read_last_message("a-1", EMOJI), "message_type", EMOJI),
    (lambda s: s.stream_identifiers(EMOJI), "category_name", EMOJI),
    (lambda s: s.read_category("a", correlation=EMOJI), "correlation", EMOJI),
]


@pytest.mark.parametrize(("call", "argument", "value"), CALLS)
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_character_that_the_database_does_not_have_is_refused_by_argument(
    latin1: str, driver: str, call: Callable[[Store], Any], argument: str, value: object
) -> None:
    with store_on(driver, latin1, **IN_UTF8[driver]) as store:
        with pytest.raises(InvalidArgument) as caught:
            call(store)
        assert (caught.value.argument, caught.value.value) == (argument, value)
        assert caught.value.reason == f"must not contain {EMOJI!r}: the database's encoding, LATIN1, does not have it"
        assert isinstance(caught.value.__cause__, DBAPIError)
        assert store.read("a") == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_the_database_has_is_written_and_read(latin1: str, driver: str) -> None:
    with store_on(driver, latin1, **IN_UTF8[driver]) as store:
        position = store.write("grün-1", "Größe", {"ä": "é"}, {"by": "Åsa"})
        message = store.read("grün-1")[position]
        assert (message.type, message.data, message.metadata) == ("Größe", {"ä": "é"}, {"by": "Åsa"})


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "psycopg_async"])
def test_what_the_driver_cannot_encode_is_pythons_own_error(latin1: str, driver: str) -> None:
    with store_on(driver, latin1) as store:
        with pytest.raises(UnicodeEncodeError):
            store.write("a-1", "T", {"a": EMOJI})
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert store.read("a-1") == []


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_serializer_that_escapes_is_not_blamed(latin1: str, driver: str) -> None:
    with store_on(driver, latin1, json_serializer=json.dumps) as store:
        with pytest.raises(InvalidArgument, match="the database's encoding, LATIN1, does not have it") as caught:
            store.write("a-1", "T", {"a": EMOJI}, {"b": "é"})
        assert caught.value.argument == "data"
        with pytest.raises(InvalidArgument, match=f"must not contain {EMOJI!r}") as caught:
            store.write_batch("a-1", [("T", {}), ("T", {}, {"b": EMOJI})])
        assert caught.value.argument == "messages[1].metadata"


def test_other_encodings_are_named_too(other: tuple[str, str]) -> None:
    encoding, url = other
    with store_on("asyncpg", url) as store, pytest.raises(InvalidArgument) as caught:
        store.write("a-1", "T", {"a": EMOJI})
    assert str(caught.value) == (
        f"data={{'a': {EMOJI!r}}}: must not contain {EMOJI!r}: the database's encoding, {encoding}, does not have it"
    )


def test_sql_ascii_takes_what_a_client_sends(messagedb_server_url: str) -> None:
    for url in database_in("SQL_ASCII", messagedb_server_url):
        with store_on("asyncpg", url) as store:
            store.write(f"a-{EMOJI}", "T", {"a": EMOJI})
            assert store.read(f"a-{EMOJI}")[0].data == {"a": EMOJI}
            with pytest.raises(UnicodeEncodeError), store_on("psycopg2", url) as in_ascii:
                in_ascii.write("a-1", "T", {"a": EMOJI})


def test_combined_writes_are_refused_one_by_one(latin1: str) -> None:
    with store_on("psycopg2", latin1) as store:
        combining = Store(store.engine, combine_writes=True)
        with pytest.raises(UnicodeEncodeError):
            combining.write("combined-1", "T", {"a": EMOJI})
        assert combining.write("combined-1", "T", {}) == 0
