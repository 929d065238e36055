"""Arrow behind PgBouncer in transaction mode: ADBC's connection is a client of it, as the engine's are."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import NullPool

from messagedb_sa import Store, transfer

pytest.importorskip("pyarrow")
pytest.importorskip("adbc_driver_postgresql")


def test_all_names_are_read(pooled_url: str, messagedb_store: Store) -> None:
    messagedb_store.write_batch("account-1", [("Opened", {"n": n}) for n in range(5)])
    messagedb_store.write("order-1", "Placed", {})
    store = Store.from_url(pooled_url, poolclass=NullPool)
    # Often enough to meet each session again.
    for _ in range(4):
        for name in ("$all", "account", "account-1"):
            read: Any = transfer.to_arrow(store, name).read_all()
            assert read["id"].to_pylist() == [message.id for message in messagedb_store.read(name)]


def test_its_setting_is_gone_with_its_transaction(pooled_url: str, messagedb_store: Store) -> None:
    messagedb_store.write_batch("account-1", [("Opened", {"n": n}) for n in range(5)])
    store = Store.from_url(pooled_url, poolclass=NullPool)
    for _ in range(6):
        transfer.to_arrow(store, "account").read_all()
        with store.engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW enable_sort").scalar() == "on"
