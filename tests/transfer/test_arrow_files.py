"""Parquet and Arrow's files: what is in them, that they appear whole, and how much memory they need."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from messagedb_sa import Store, transfer

from ..store.test_read_all import being_written
from ..support import LONG

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("adbc_driver_postgresql")

EXPORTS = {"parquet": transfer.export_parquet, "arrow": transfer.export_arrow, "arrows": transfer.export_arrow}


def read(path: Path) -> Any:
    if path.suffix == ".parquet":
        return parquet.read_table(path)
    opened = pa.ipc.open_file if path.suffix == ".arrow" else pa.ipc.open_stream
    with pa.OSFile(str(path)) as file:
        return opened(file).read_all()


def fill(store: Store, messages: int, bytes_each: int = 0) -> None:
    with store.engine.begin() as connection:
        # The text cannot be compressed, neither by the server nor in a file.
        filled = (
            "INSERT INTO message_store.messages (stream_name, position, type, data)"
            " SELECT 'account-' || n % 100, n / 100, 'Deposited', jsonb_build_object('amount', n % 1000, 'note',"
            " (SELECT string_agg(encode(sha512(decode(md5(n || '.' || part), 'hex')), 'hex'), '')"
            " FROM generate_series(1, :parts) part))"
            " FROM generate_series(0, :messages - 1) n"
        )
        connection.execute(text(filled), {"messages": messages, "parts": bytes_each // 128})


@pytest.mark.parametrize("suffix", EXPORTS)
def test_the_file_has_what_to_arrow_returns(store: Store, suffix: str, tmp_path: Path) -> None:
    fill(store, 1000)
    store.write("order-1", "Placed", None)
    path = tmp_path / f"messages.{suffix}"
    progress: list[tuple[int, int | None]] = []
    done = EXPORTS[suffix](store, "$all", path, on_progress=lambda *reached: progress.append(reached))
    expected = transfer.to_arrow(store, "$all").read_all()
    assert read(path).equals(expected)
    assert done == (1001, 1001, None)
    assert progress == [(1001, 1001)]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", EXPORTS)
def test_the_selection_is_that_of_to_arrow_and_the_file_says_which(store: Store, suffix: str, tmp_path: Path) -> None:
    fill(store, 500)
    store.write("account-1", "Closed", None)
    path = tmp_path / f"messages.{suffix}"
    chosen: dict[str, Any] = {"position": 2, "up_to": 5, "types": ["Closed", "Deposited"], "no_of_messages": 3}
    done = EXPORTS[suffix](store, "account-1", path, **chosen)
    table = read(path)
    assert table["position"].to_pylist() == [2, 3, 4]
    assert done == (3, table["global_position"][-1].as_py(), None)
    assert json.loads(table.schema.metadata[b"messagedb"]) == {
        "database": store.engine.url.database,
        "name": "account-1",
        **chosen,
        "unsettled": None,
    }


@pytest.mark.parametrize("suffix", EXPORTS)
def test_if_there_is_nothing_the_file_has_its_columns(store: Store, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"messages.{suffix}"
    assert EXPORTS[suffix](store, "account", path) == (0, 0, None)
    assert read(path).equals(transfer.to_arrow(store, "account").read_all())


@pytest.mark.parametrize("suffix", EXPORTS)
def test_the_result_and_the_file_say_before_which_number_it_stopped(store: Store, suffix: str, tmp_path: Path) -> None:
    store.write("quick-1", "Written", {})
    path = tmp_path / f"messages.{suffix}"
    with being_written(store.engine):
        store.write("quick-1", "Written", {})
        assert EXPORTS[suffix](store, "$all", path, settle_seconds=0) == (1, 1, 2)
    assert json.loads(read(path).schema.metadata[b"messagedb"])["unsettled"] == 2


def test_parquet_is_compressed_and_in_groups_of_some_megabytes(store: Store, tmp_path: Path) -> None:
    fill(store, 8000, bytes_each=3200)
    transfer.export_parquet(store, "$all", tmp_path / "messages.parquet")
    file = parquet.ParquetFile(tmp_path / "messages.parquet")
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    assert len(groups) > 2
    assert max(group.total_byte_size for group in groups) < 12_000_000
    assert {group.column(0).compression for group in groups} == {"ZSTD"}


def test_an_open_file_gets_the_streaming_format_and_stays_open(store: Store) -> None:
    fill(store, 100)
    arrow, in_parquet = io.BytesIO(), io.BytesIO()
    transfer.export_arrow(store, "account", arrow)
    transfer.export_parquet(store, "account", in_parquet)
    expected = transfer.to_arrow(store, "account").read_all()
    assert pa.ipc.open_stream(arrow.getvalue()).read_all().equals(expected)
    assert parquet.read_table(io.BytesIO(in_parquet.getvalue())).equals(expected)


@pytest.mark.parametrize("export", [transfer.export_arrow, transfer.export_parquet], ids=["arrow", "parquet"])
def test_a_pipe_gets_it_all(store: Store, export: Callable[..., Any], tmp_path: Path) -> None:
    fill(store, 100)
    program = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
    copied = tmp_path / "copied"
    with copied.open("wb") as out:
        reading = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=out)
        assert reading.stdin is not None
        export(store, "account", reading.stdin)
        reading.communicate()
    expected = transfer.to_arrow(store, "account").read_all()
    of_arrow = export is transfer.export_arrow
    assert (pa.ipc.open_stream(copied.read_bytes()).read_all() if of_arrow else parquet.read_table(copied)).equals(
        expected
    )


@pytest.mark.parametrize("export", [transfer.export_arrow, transfer.export_parquet], ids=["arrow", "parquet"])
def test_a_pipe_that_nobody_reads_any_more_is_a_broken_pipe(store: Store, export: Callable[..., Any]) -> None:
    fill(store, 100)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as out, pytest.raises(BrokenPipeError):
        export(store, "account", out)


MEASURED = """
import resource, sys
from messagedb_sa import Store, transfer
export, suffix, url, path, last = sys.argv[1:]
store = Store.from_url(url)
done = getattr(transfer, export)(store, "$all", f"{path}.{suffix}", up_to=int(last))
if sys.platform == "darwin":
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
else:
    # Not ru_maxrss: that counts what the process that started this one had.
    peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(done.messages, peak // 1_000_000)
"""


def peak_megabytes(export: str, suffix: str, url: str, path: Path, messages: int) -> int:
    command = [sys.executable, "-c", MEASURED, export, suffix, url, str(path), str(messages)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    exported, megabytes = map(int, done.stdout.split())
    assert exported == messages
    return megabytes


def test_the_memory_does_not_grow_with_the_number_of_messages(store: Store, messagedb_url: str, tmp_path: Path) -> None:
    few, many = (20_000, 100_000) if LONG else (10_000, 40_000)
    fill(store, many, bytes_each=2048)
    # So many megabytes more are in the larger file.
    more = (many - few) * 2048 // 1_000_000
    for suffix in ("parquet", "arrow"):
        export, path = EXPORTS[suffix].__name__, tmp_path / "messages"
        small, large = (peak_megabytes(export, suffix, messagedb_url, path, number) for number in (few, many))
        assert path.with_suffix(f".{suffix}").stat().st_size > 0.3 * more * 1_000_000
        assert large - small < 0.5 * more


@pytest.mark.skipif(os.environ.get("MESSAGEDB_HUGE") != "1", reason="takes minutes: with MESSAGEDB_HUGE=1 only")
@pytest.mark.timeout(1800)
def test_five_million_messages_need_less_than_200_megabytes_and_add_up(
    store: Store, messagedb_url: str, tmp_path: Path
) -> None:
    duckdb = pytest.importorskip("duckdb")
    fill(store, 5_000_000)
    assert peak_megabytes("export_parquet", "parquet", messagedb_url, tmp_path / "messages", 5_000_000) < 200
    query = "SELECT count(*), sum(CAST(data->>'amount' AS integer)), max(global_position) FROM {}"
    with store.engine.connect() as connection:
        expected = tuple(connection.execute(text(query.format("message_store.messages"))).one())
    (counted,) = duckdb.sql(query.format(f"'{tmp_path / 'messages.parquet'}'")).fetchall()
    assert counted == expected == (5_000_000, 2_497_500_000, 5_000_000)
