"""Every driver: one body on the expressions and one on installing, run by each."""

from __future__ import annotations

from typing import Any, TypeVar
from uuid import uuid4

import pytest
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, Text, Uuid, func, insert, select, true

from messagedb_sa import Store, functions, install, schema
from messagedb_sa.install import MigrationRefused

from ..support import DRIVERS, on

T = TypeVar("T")
accounts = Table(
    "accounts",
    MetaData(),
    Column("number", Integer),
    Column("stream", Text),
    Column("command", Uuid),
    prefixes=["TEMP"],
)


def expressions(connection: Connection) -> None:
    def scalar(expression: Any) -> Any:
        return connection.execute(select(expression)).scalar_one()

    accounts.create(connection)
    command = uuid4()
    connection.execute(insert(accounts).values(number=1, stream="account-1+2", command=command))
    name = accounts.c.stream
    parts = connection.execute(
        select(
            functions.category(name),
            functions.id(name),
            functions.cardinal_id(name),
            functions.is_category(name),
            functions.hash_64(functions.category("account-1")) == functions.acquire_lock(name),
        )
    ).one()
    assert tuple(parts) == ("account", "1+2", "1", False, True)
    written = functions.write_message(accounts.c.command, name, "Opened", {"é": [1, None]}, {"by": "me"}, -1)
    assert scalar(written) == 0
    assert scalar(functions.write_message(uuid4(), "account-1+2", "Closed", None)) == 1
    assert scalar(functions.write_message(str(uuid4()), "account-3", "Opened", [], expected_version=-1)) == 0
    assert scalar(functions.stream_version("account-1+2")) == 1
    assert scalar(functions.message_store_version()) == "1.3.0"

    first, second = connection.execute(select(functions.get_stream_messages("account-1+2").messages())).all()
    assert (first.id, first.data, first.metadata, second.data) == (str(command), {"é": [1, None]}, {"by": "me"}, None)
    assert first.time.utcoffset().total_seconds() == 0
    group = functions.get_category_messages("account", 1, -1, consumer_group_member=0, consumer_group_size=1).messages(
        "m"
    )
    assert connection.execute(select(group.c.position).order_by(group.c.global_position)).scalars().all() == [0, 1, 0]
    last = functions.get_last_stream_message(name, "Opened").messages().lateral()
    assert connection.execute(select(accounts.c.number, last.c.data).join(last, true())).one() == (1, {"é": [1, None]})
    assert scalar(func.count(schema.messages.c.id)) == 3
    row = connection.execute(select(schema.messages).where(schema.messages.c.id == command)).one()
    assert (row.data, row.metadata) == ({"é": [1, None]}, {"by": "me"})


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_expressions_work(driver: str, messagedb_url: str, messagedb_store: Store) -> None:
    on(driver, messagedb_url, expressions)
    assert len(messagedb_store.read("account")) == 3


@pytest.mark.parametrize("driver", DRIVERS)
def test_installing_and_removing_work(driver: str, empty_database: Engine) -> None:
    url = empty_database.url.render_as_string(hide_password=False)
    on(driver, url, install.upgrade)
    assert on(driver, url, install.current) == install.current(empty_database) is not None
    on(driver, url, install.upgrade)
    Store(empty_database).write("account-1", "Opened", {})
    with pytest.raises(MigrationRefused, match=r"^this downgrade would delete 1 messages"):
        on(driver, url, install.downgrade)
    on(driver, url, lambda connection: install.downgrade(connection, discard_messages=True))
    assert on(driver, url, install.current) is None
