"""Parking in a database whose encoding lacks characters, or is none."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text

from messagedb_sa import Message, MessageNotDecodable, Store, install

from ..support import DRIVERS, consumer_on, insert, store_on


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def encoded_url(request: pytest.FixtureRequest, messagedb_server_url: str) -> Iterator[str]:
    name = f"messagedb_{secrets.token_hex(8)}"
    admin = create_engine(messagedb_server_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    options = f"ENCODING '{request.param}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} {options}"))
    url = make_url(messagedb_server_url).set(database=name)
    engine = create_engine(url, poolclass=NullPool)
    install.upgrade(engine)
    yield url.render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_message_is_parked_whatever_characters_it_and_its_error_have(
    encoded_url: str, driver: str, transactional: bool
) -> None:
    utf8 = create_engine(encoded_url, client_encoding="utf8", poolclass=NullPool)
    store = Store(utf8)
    store.write("account-é", "Geöffnet", {"owner": "Zoë"})
    insert(store, "account-é", 1, "Odd", "{}", "'infinity'")
    # SQLAlchemy cannot use psycopg without an encoding.
    options = {"client_encoding": "utf8"} if driver in ("psycopg", "psycopg_async") else {}

    def fail(message: Message, *_: object) -> None:
        raise ValueError("\N{GRINNING FACE}")

    with store_on(driver, encoded_url, poolclass=NullPool, connect_args=options) as on_driver:
        messages = on_driver.iter_category("account")
        assert next(messages)[1:6] == ("account-é", "Geöffnet", 0, 1, {"owner": "Zoë"})
        with pytest.raises(MessageNotDecodable, match="'account-é'"):
            next(messages)
        consumer = consumer_on(on_driver, "account", fail, "a", on_failure="park", transactional=transactional)
        assert consumer.run_until_caught_up() == 2
    dead = store.read("account:dead", no_of_messages=1)[0]
    assert dead[2:6:3] == ("Geöffnet", {"owner": "Zoë"})
    assert dead.metadata["causationMessageStreamName"] == "account-é"
    assert dead.metadata["dead"]["error"] in ("ValueError: \N{GRINNING FACE}", "ValueError: \\U0001f600")
