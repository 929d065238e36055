"""Reads backwards select from the table, so they work on a store that the scripts of Message DB installed."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.schema import CreateIndex

from messagedb_sa import Store, schema


@pytest.mark.parametrize("with_index", [False, True])
def test_the_official_store_is_read_backwards(official: Engine, with_index: bool) -> None:
    engine = create_engine(official.url, connect_args={"options": "-c search_path=message_store,public"})
    store = Store(engine)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE message_store.messages RESTART IDENTITY"))
        if with_index:
            connection.execute(CreateIndex(schema.consumer_group_index(2)))
    for n in range(12):
        store.write(f"account-{n % 4}", "Deposited", {"n": n}, {"correlationStreamName": f"order-{n % 3}"})
    for name in ("account-1", "account", "$all"):
        assert store.read(name, backwards=True) == store.read(name)[::-1]
    shares = []
    for member in range(2):
        forwards = store.read_category("account", None, 99, member, 2, correlation="order")
        shares += store.read_category("account", None, 99, member, 2, correlation="order", backwards=True)
        assert shares[-len(forwards) :] == forwards[::-1]
    assert len(shares) == 12
    assert store.last_global_position("account") == store.last_global_position("$all") == 12
    engine.dispose()
