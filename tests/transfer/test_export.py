"""Exports: the lines, their order, where they end, and the file."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from messagedb_sa import AsyncStore, InvalidArgument, Store, StoreNotInstalled, transfer

from ..waits import wait_until
from .support import exported, fill_with_hard_ones, roll_back


def lines(store: Store, name: str = "$all", **options: Any) -> list[Any]:
    return [json.loads(line) for line in exported(store, name, **options).splitlines()]


def test_each_line_has_the_fields_of_as_json_dict(each_store: Store, store: Store) -> None:
    store.write_batch("account-1", [("Opened", {"owner": "Ada"}, {"by": None}), ("Closed", None)])
    assert lines(store) == [message.as_json_dict() for message in store.read("$all")]
    assert [list(line) for line in lines(store)] == [list(each.keys()) for each in store.read("$all")]


def test_a_stream_a_category_and_the_whole_store_are_exported_in_order(store: Store) -> None:
    for n in range(6):
        store.write(f"account-{n % 2}", "Deposited", {"n": n})
        store.write("order-1", "Placed", {"n": n})
    for name in ("account-1", "account", "order-1", "$all"):
        read = store.read(name)
        assert lines(store, name) == [message.as_json_dict() for message in read]
    assert lines(store, "account-1", position=2) == [store.read_stream("account-1", 2)[0].as_json_dict()]
    assert [line["data"]["n"] for line in lines(store, "account", position=7)] == [3, 4, 5]
    assert [line["global_position"] for line in lines(store, position=11)] == [11, 12]


def test_a_name_without_messages_gives_an_empty_file(store: Store) -> None:
    store.write("account-1", "Opened", {})
    for name in ("nothing", "nothing-1", "$all"):
        assert transfer.export_messages(store, name, io.BytesIO(), position=9) == (0, 0, None)


def test_jsons_null_is_told_from_sqls(store: Store) -> None:
    fill_with_hard_ones(store)
    found = lines(store, "nulls-1")
    assert [line.get("json_null") for line in found] == [None, ["data"], ["metadata"], ["data", "metadata"]]
    assert all(line["data"] is None and line["metadata"] is None for line in found)


def test_the_result_counts_and_progress_is_told(store: Store) -> None:
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(2500)])
    roll_back(store)
    told: list[Any] = []
    done = transfer.export_messages(store, "$all", io.BytesIO(), on_progress=lambda *how: told.append(how))
    assert done == transfer.Transferred(2500, 2500, None)
    assert told == [(1000, 2500), (2000, 2500), (2500, 2500)]


def test_pages_of_large_messages_are_short(store: Store) -> None:
    # What PostgreSQL cannot compress.
    draw = random.Random(1)
    for n in range(12):
        store.write(f"picture-{n}", "Taken", {"pixels": draw.randbytes(250_000).hex()})

    class Measured(io.BytesIO):
        largest = 0

        def write(self, chunk: Any, /) -> int:
            self.largest = max(self.largest, len(chunk))
            return super().write(chunk)

    for name in ("$all", "picture"):
        file = Measured()
        assert transfer.export_messages(store, name, file).messages == 12
        assert file.tell() > 6_000_000
        assert file.largest < 2_500_000


def test_messages_that_come_during_the_export_are_not_in_it(store: Store) -> None:
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(1500)])

    def write(*_: object) -> None:
        store.write_batch("account-1", [("Opened", {})] * 1000)
        store.write_batch("account-2", [("Opened", {})] * 1000)

    for name in ("account-1", "account", "$all"):
        before = len(store.read(name, no_of_messages=-1))
        assert transfer.export_messages(store, name, io.BytesIO(), on_progress=write).messages == before


def test_an_open_transaction_ends_the_export_before_its_message(store: Store) -> None:
    store.write("account-1", "Opened", {})
    roll_back(store)
    store.write("account-1", "Closed", {})
    with store.engine.connect() as connection:
        Store(connection).write("order-1", "Placed", {})
        store.write("account-1", "Reopened", {})
        # The gap at 2 may be of this transaction, for all that anybody can know.
        done = transfer.export_messages(store, "$all", io.BytesIO(), settle_seconds=0)
        assert done == transfer.Transferred(1, 1, 2)
        connection.commit()
    assert transfer.export_messages(store, "$all", io.BytesIO(), settle_seconds=0) == (4, 5, None)


def test_it_waits_for_an_open_transaction(store: Store) -> None:
    with store.engine.connect() as connection:
        Store(connection).write("order-1", "Placed", {})
        store.write("account-1", "Opened", {})
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(lines(store)))
        thread.start()
        looks = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND query LIKE '%pg_sleep(%' AND query LIKE '%virtualxid%'"
        )
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watching:
            wait_until(lambda: watching.scalar(looks), "the export looks at the locks")
        connection.commit()
        thread.join()
    assert [line["stream_name"] for line in found[0]] == ["order-1", "account-1"]


def test_a_path_gets_the_file_when_it_is_complete(store: Store, tmp_path: Path) -> None:
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(2500)])
    path = tmp_path / "export.jsonl"
    path.write_text("before")

    def fail(*_: object) -> None:
        assert path.read_text() == "before"
        assert len(list(tmp_path.iterdir())) == 2
        raise RuntimeError

    with pytest.raises(RuntimeError):
        transfer.export_messages(store, "$all", path, on_progress=fail)
    assert [each.name for each in tmp_path.iterdir()] == ["export.jsonl"]
    assert path.read_text() == "before"
    transfer.export_messages(store, "$all", str(path))
    assert [each.name for each in tmp_path.iterdir()] == ["export.jsonl"]
    assert path.read_bytes() == exported(store)


def test_a_name_with_gz_is_compressed_and_the_same_each_time(store: Store, tmp_path: Path) -> None:
    fill_with_hard_ones(store)
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        transfer.export_messages(store, "$all", tmp_path / name)
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.jsonl.gz").read_bytes()) == exported(store)


def test_a_link_and_a_pipe_are_written_through(store: Store, tmp_path: Path) -> None:
    store.write("account-1", "Opened", {})
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    transfer.export_messages(store, "$all", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == exported(store)
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    transfer.export_messages(store, "$all", tmp_path / "pipe")
    reader.join()
    assert read == [exported(store)]


def test_bad_arguments_are_refused(store: Store, tmp_path: Path) -> None:
    some: Any
    for some in (io.StringIO(), 7, None):
        with pytest.raises(InvalidArgument, match="file="):
            transfer.export_messages(store, "$all", some)
    for some in ("", 7, "a\0b"):
        with pytest.raises(InvalidArgument, match="name="):
            transfer.export_messages(store, some, tmp_path / "file")
    for some in ("7", 1.5):
        with pytest.raises(InvalidArgument, match="position="):
            transfer.export_messages(store, "$all", tmp_path / "file", position=some)
    with pytest.raises(InvalidArgument, match="settle_seconds=-1"):
        transfer.export_messages(store, "$all", tmp_path / "file", settle_seconds=-1)
    missing = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError) as raised:
        transfer.export_messages(store, "$all", missing)
    assert raised.value.filename == str(missing)
    assert list(tmp_path.iterdir()) == []


def test_only_a_store_on_an_engine_is_taken(store: Store, messagedb_async_store: AsyncStore, tmp_path: Path) -> None:
    some: Any
    with store.engine.connect() as connection:
        for some in (messagedb_async_store, store.engine, "postgresql://localhost/app", Store(connection)):
            with pytest.raises(InvalidArgument, match="must be a Store"):
                transfer.export_messages(some, "$all", tmp_path / "file")


def test_a_database_without_a_store_is_named(empty_database: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreNotInstalled):
        transfer.export_messages(Store(empty_database), "$all", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
