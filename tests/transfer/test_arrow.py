"""Messages as Arrow: the same as a read returns, for pandas, polars and DuckDB."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncStore, InvalidArgument, Message, MissingPrivilege, Store, StoreNotInstalled, transfer
from messagedb_sa.transfer._arrow_statements import PREPARE, messages_statement

from ..store.test_read_all import being_written, leave_a_gap, wait_until_somebody_waits
from ..support import as_role, examples, insert
from ..waits import HANG

pa = pytest.importorskip("pyarrow")
pytest.importorskip("adbc_driver_postgresql")

HOSTILE = [
    "it's",
    "back\\slash\\",
    "\\'; DROP TABLE message_store.messages; --",
    '"quoted"',
    "100% %s %(name)s %%",
    ":name $1 ? {x}",
    "new\nline\ttab",
    "Grüße, 世界 \U0001f600",
    "$$ dollar $$",
]


def messages_of(reader: Any) -> list[Message]:
    """The rows as messages, as a read returns them."""
    found = []
    for row in reader.read_all().to_pylist():
        decoded = {name: None if row[name] is None else json.loads(row[name]) for name in ("data", "metadata")}
        found.append(Message(**{**row, **decoded}))
    return found


def rows(reader: Any) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", reader.read_all().to_pylist())


@pytest.fixture
def filled(store: Store) -> Store:
    store.write_batch("account-1", [("Opened", {"owner": "Ada"}), ("Deposited", {"amount": 100}, {"by": "Ada"})])
    store.write("order-1", "Placed", None)
    store.write_batch("account-2", [("Opened", {"owner": "Grace"}), ("Deposited", [1, 2.5, None]), ("Closed", "x")])
    store.write("account", "Audited", {})
    return store


# ---- what is read


@pytest.mark.parametrize("name", ["account-1", "account-2", "account", "order", "$all", "nothing", "nothing-1"])
def test_the_messages_are_those_of_a_read_in_the_same_order(filled: Store, name: str) -> None:
    read = filled.read(name)
    assert messages_of(transfer.to_arrow(filled, name)) == read
    assert bool(read) != name.startswith("nothing")


def test_the_columns_are_those_of_a_message_with_their_types(filled: Store) -> None:
    for name in ("$all", "nothing"):
        schema = transfer.to_arrow(filled, name).schema
        assert [(field.name, str(field.type)) for field in schema] == [
            ("id", "string"),
            ("stream_name", "string"),
            ("type", "string"),
            ("position", "int64"),
            ("global_position", "int64"),
            ("data", "string"),
            ("metadata", "string"),
            ("time", "timestamp[us, tz=UTC]"),
        ]
        assert [field.name for field in schema if field.nullable] == ["data", "metadata", "time"]


def test_json_keeps_all_its_digits_and_null_is_told_from_jsons_null(store: Store) -> None:
    insert(store, "a-1", 0, "T", '{"n": 12345678901234567890.123456789012345678901234567890}', metadata="null")
    insert(store, "a-1", 1, "T", "null")
    insert(store, "a-1", 2, "T", None)
    first, second, third = rows(transfer.to_arrow(store, "a-1"))
    assert first["data"] == '{"n": 12345678901234567890.123456789012345678901234567890}'
    assert (first["metadata"], second["data"], third["data"], third["metadata"]) == ("null", "null", None, None)


def test_times_are_exact_and_null_if_python_does_not_have_them(store: Store) -> None:
    times = ["0001-01-01", "9999-12-31 23:59:59.999999", "2026-11-26 12:00:00.000001"]
    others = ["infinity", "-infinity", "10000-01-01", "294276-12-31", "0001-12-31 BC", "4713-01-01 BC"]
    for position, each in enumerate(times + others):
        insert(store, "a-1", position, "T", None, f"timestamp '{each}'")
    read = [row["time"] for row in rows(transfer.to_arrow(store, "a-1"))]
    assert read == [
        datetime(1, 1, 1, tzinfo=timezone.utc),
        datetime.max.replace(tzinfo=timezone.utc),
        datetime(2026, 11, 26, 12, 0, 0, 1, tzinfo=timezone.utc),
        *[None] * len(others),
    ]


def test_the_time_is_utc_whatever_zone_the_session_has(filled: Store) -> None:
    with filled.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        database = filled.engine.url.database
        connection.execute(text(f"ALTER DATABASE {database} SET TimeZone = 'Asia/Kathmandu'"))
        try:
            assert messages_of(transfer.to_arrow(filled, "$all")) == filled.read("$all")
        finally:
            connection.execute(text(f"ALTER DATABASE {database} RESET TimeZone"))


def test_a_large_message_comes_whole(store: Store) -> None:
    # Larger than a batch.
    store.write("a-1", "T", {"text": "x" * 20_000_000})
    store.write_batch("a-1", [("T", {"text": "y" * 5_000_000})] * 3)
    assert messages_of(transfer.to_arrow(store, "a-1")) == store.read("a-1")


# ---- what is selected


@settings(max_examples=examples(60))
@given(
    name=st.sampled_from(["account-1", "account", "$all"]),
    position=st.none() | st.integers(0, 12),
    up_to=st.none() | st.integers(0, 12),
    types=st.none() | st.lists(st.sampled_from(["Opened", "Deposited", "Closed", "None"]), min_size=1),
    no_of_messages=st.integers(-1, 5),
)
def test_a_selection_is_what_a_filter_of_all_messages_gives(
    selected_from: Store,
    name: str,
    position: int | None,
    up_to: int | None,
    types: list[str] | None,
    no_of_messages: int,
) -> None:
    def is_selected(message: Message) -> bool:
        at = message.position if name == "account-1" else message.global_position
        return (
            (position is None or at >= position)
            and (up_to is None or at <= up_to)
            and (types is None or message.type in types)
        )

    expected = [message for message in selected_from.read(name) if is_selected(message)]
    reader = transfer.to_arrow(
        selected_from,
        name,
        position=position,
        up_to=up_to,
        types=types,
        no_of_messages=no_of_messages,
    )
    assert messages_of(reader) == (expected if no_of_messages == -1 else expected[:no_of_messages])


@pytest.fixture
def selected_from(filled: Store) -> Store:
    filled.write_batch("account-1", [("Deposited", {"amount": n}) for n in range(4)])
    return filled


@pytest.mark.parametrize("conforming", ["on", "off"])
def test_names_and_types_may_have_any_characters(store: Store, conforming: str) -> None:
    awkward = [(each.replace("-", ""), each) for each in HOSTILE]
    for category, each in awkward:
        store.write_batch(f"{category}-{each}", [(each, {}), ("T", {})])
    database = store.engine.url.database
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # It says whether a backslash is special.
        connection.execute(text(f"ALTER DATABASE {database} SET standard_conforming_strings = {conforming}"))
        for category, each in awkward:
            name = f"{category}-{each}"
            assert [row["type"] for row in rows(transfer.to_arrow(store, name))] == [each, "T"]
            (found,) = rows(transfer.to_arrow(store, category, types=[each, "nothing"]))
            assert (found["stream_name"], found["type"]) == (name, each)
        assert len(rows(transfer.to_arrow(store, "$all", types=HOSTILE))) == len(HOSTILE)
        connection.execute(text(f"ALTER DATABASE {database} RESET standard_conforming_strings"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"name": ""}, "name=''"),
        ({"name": "a\0b"}, "must not contain a NUL"),
        ({"name": 7}, "name=7: must be a string"),
        ({"position": -1}, "position=-1"),
        ({"position": "1"}, "position='1'"),
        ({"up_to": -1}, "up_to=-1"),
        ({"types": "Deposited"}, "types='Deposited': must be a list"),
        ({"types": []}, "must name at least one"),
        ({"types": ["T", 7]}, r"types\[1\]=7"),
        ({"no_of_messages": -2}, "no_of_messages=-2"),
        ({"settle_seconds": -1}, "settle_seconds=-1"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_bad_arguments_are_named(store: Store, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        transfer.to_arrow(store, **{"name": "$all", **arguments})


def test_it_needs_a_store_on_an_engine(store: Store) -> None:
    with store.engine.connect() as connection, pytest.raises(InvalidArgument, match="on an Engine"):
        transfer.to_arrow(Store(connection), "$all")
    not_one: Any = AsyncStore(create_async_engine("postgresql+asyncpg://"))
    with pytest.raises(InvalidArgument, match="must be a Store"):
        transfer.to_arrow(not_one, "$all")


# ---- the end


def test_all_waits_for_what_is_being_written_before_its_end(store: Store) -> None:
    with ThreadPoolExecutor() as threads, being_written(store.engine) as writing:
        store.write("quick-1", "Written", {})
        reading = threads.submit(lambda: rows(transfer.to_arrow(store, "$all", settle_seconds=HANG)))
        wait_until_somebody_waits(store.engine)
        writing.commit()
        assert [row["global_position"] for row in reading.result()] == [1, 2]


def test_if_that_takes_too_long_it_ends_before_the_missing_number_and_a_warning_says_so(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_batch("quick-1", [("Written", {})] * 2)
    with being_written(store.engine):
        store.write("quick-1", "Written", {})
        reader = transfer.to_arrow(store, "$all", settle_seconds=0)
        assert json.loads(reader.schema.metadata[b"messagedb"])["unsettled"] == 3
        assert [row["global_position"] for row in rows(reader)] == [1, 2]
        (warning,) = (each.getMessage() for each in caplog.records if each.name == "messagedb_sa.transfer")
        assert "before global position 3" in warning
        # What was asked for is all there.
        reader = transfer.to_arrow(store, "$all", up_to=2, settle_seconds=0)
        assert [row["global_position"] for row in rows(reader)] == [1, 2]
    assert len([each for each in caplog.records if each.name == "messagedb_sa.transfer"]) == 1


def test_a_number_that_was_rolled_back_is_passed(store: Store) -> None:
    leave_a_gap(store.engine)
    store.write("quick-1", "Written", {})
    assert [row["global_position"] for row in rows(transfer.to_arrow(store, "$all"))] == [2]


def test_what_is_written_after_the_call_is_not_read(filled: Store) -> None:
    expected = filled.read("$all")
    reader = transfer.to_arrow(filled, "$all")
    filled.write("order-1", "Placed", {})
    assert messages_of(reader) == expected


# ---- how it is read


@pytest.mark.parametrize(
    ("name", "index"),
    [("$all", "messages_pkey"), ("account", "messages_category"), ("account-1", "messages_stream")],
    ids=["all", "category", "stream"],
)
def test_it_reads_in_the_order_of_an_index(store: Store, name: str, index: str) -> None:
    with store.engine.begin() as connection:
        fill = (
            "INSERT INTO message_store.messages (stream_name, position, type, data)"
            " SELECT 'account-1', n, 'T', '{}' FROM generate_series(0, 4999) n"
        )
        connection.execute(text(fill))
        connection.execute(text("ANALYZE message_store.messages"))
        for types in (None, ["T"]):
            connection.execute(text(PREPARE))
            statement = messages_statement(name, 0, 10_000, types, -1)
            plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}").scalars())
            assert f"Index Scan using {index}" in plan
            assert "Sort" not in plan


def test_pandas_polars_and_duckdb_take_it(filled: Store) -> None:
    duckdb, pandas, polars = (pytest.importorskip(each) for each in ("duckdb", "pandas", "polars"))
    frame = transfer.to_arrow(filled, "account").read_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["global_position"]) == [1, 2, 4, 5, 6, 7]
    assert str(frame["time"].dtype) == "datetime64[us, UTC]"
    table = polars.from_arrow(transfer.to_arrow(filled, "account"))
    assert table.filter(polars.col("type") == "Deposited")["position"].to_list() == [1, 1]
    assert table.schema["time"] == polars.Datetime("us", "UTC")
    relation = duckdb.from_arrow(transfer.to_arrow(filled, "account"))
    assert relation.filter("type = 'Opened'").project("data->>'owner'").fetchall() == [("Ada",), ("Grace",)]


def test_an_aggregate_in_duckdb_is_that_of_postgresql(store: Store) -> None:
    duckdb = pytest.importorskip("duckdb")
    with store.engine.begin() as connection:
        fill = (
            "INSERT INTO message_store.messages (stream_name, position, type, data)"
            " SELECT 'account-' || n % 50, n / 50, CASE n % 3 WHEN 0 THEN 'Withdrawn' ELSE 'Deposited' END,"
            " jsonb_build_object('amount', n * 7 % 1000) FROM generate_series(0, 19999) n"
        )
        connection.execute(text(fill))
        query = (
            "SELECT type, stream_name, count(*), CAST(sum(CAST(data->>'amount' AS integer)) AS integer), max(time)"
            " FROM {} GROUP BY type, stream_name ORDER BY type, stream_name"
        )
        expected = [tuple(row) for row in connection.execute(text(query.format("message_store.messages")))]
    messages = transfer.to_arrow(store, "account")
    counted = duckdb.from_arrow(messages).query("messages", query.format("messages")).fetchall()
    assert [row[:4] for row in counted] == [row[:4] for row in expected]
    assert {row[4].astimezone(timezone.utc).replace(tzinfo=None) for row in counted} == {row[4] for row in expected}
    assert len(expected) == 100


# ---- errors


def test_a_database_without_a_store_is_named(empty_database: Any) -> None:
    for name in ("$all", "account", "account-1"):
        with pytest.raises(StoreNotInstalled):
            transfer.to_arrow(Store(empty_database), name)


def test_so_is_a_missing_privilege(store: Store, login: Any) -> None:
    engine = as_role(store.engine, login("stranger"))
    with pytest.raises(MissingPrivilege, match="stranger"):
        transfer.to_arrow(Store(engine), "$all")


def test_the_right_to_read_is_enough(filled: Store, login: Any) -> None:
    role = login("analyst")
    with filled.engine.begin() as connection:
        connection.execute(text(f"GRANT USAGE ON SCHEMA message_store TO {role}"))
        connection.execute(text(f"GRANT SELECT ON message_store.messages TO {role}"))
        connection.execute(text(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA message_store TO {role}"))
    try:
        analyst = Store(as_role(filled.engine, role))
        for name in ("$all", "account", "account-1"):
            assert messages_of(transfer.to_arrow(analyst, name)) == filled.read(name)
    finally:
        with filled.engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))


WITHOUT = """
import sys
from messagedb_sa import MessageDBError, Store, transfer
assert "pyarrow" not in sys.modules and "adbc_driver_manager" not in sys.modules
sys.modules["{module}"] = None
store = Store.from_url({url!r})
for call in (transfer.to_arrow, transfer.export_parquet, transfer.export_arrow):
    try:
        call(store, "$all", *([] if call is transfer.to_arrow else ["new.file"]))
    except MessageDBError as error:
        print(error)
"""


@pytest.mark.parametrize("module", ["pyarrow", "adbc_driver_postgresql"])
def test_without_the_extra_the_call_names_it(messagedb_url: str, store: Store, module: str, tmp_path: Any) -> None:
    program = WITHOUT.format(module=module, url=messagedb_url)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""
    line = f'{module} is not installed, which this needs: pip install "messagedb-sa[arrow]"'
    assert done.stdout.splitlines() == [line] * 3
    assert list(tmp_path.iterdir()) == []
