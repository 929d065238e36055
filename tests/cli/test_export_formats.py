"""The formats of the command export: Parquet and Arrow."""

from __future__ import annotations

import os
import pty
from pathlib import Path
from typing import Any

import pytest

from messagedb_sa import Store, transfer

from .support import messagedb, rows, running

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("adbc_driver_postgresql")


def url_of(store: Store) -> str:
    return store.engine.url.render_as_string(hide_password=False)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.parquet", ()),
        ("a.arrow", ()),
        ("a.arrows", ()),
        ("a", ("--format", "parquet")),
        ("b", ("--format", "arrow")),
    ],
    ids=["parquet", "arrow", "arrows", "option-parquet", "option-arrow"],
)
def test_the_format_is_that_of_the_option_or_of_the_files_suffix(
    store: Store, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(3)])
    store.write("order-1", "Placed", {})
    path = tmp_path / name
    done = messagedb("export", "account", "-o", str(path), *options, "--json", url=url_of(store))
    assert rows(done) == [{"messages": 3, "last_global_position": 3}]
    expected = transfer.to_arrow(store, "account").read_all()
    if "parquet" in (path.suffix[1:], *options):
        assert parquet.read_table(path).equals(expected)
    else:
        opened = pa.ipc.open_stream if path.suffix == ".arrows" else pa.ipc.open_file
        assert opened(path.read_bytes()).read_all().equals(expected)


def test_standard_output_gets_a_stream_that_another_program_can_read(store: Store) -> None:
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(3)])
    done: Any = messagedb("export", "--format", "arrow", url=url_of(store), text=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert pa.ipc.open_stream(done.stdout).read_all().equals(transfer.to_arrow(store, "$all").read_all())


def test_a_reader_that_has_enough_is_no_error(store: Store) -> None:
    store.write_batch("account-1", [("Opened", {"text": os.urandom(500).hex()}) for _ in range(3000)])
    with running("export", "--format", "arrow", url=url_of(store)) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait() == 141


def test_a_terminal_does_not_get_it(store: Store) -> None:
    terminal, end = pty.openpty()
    with running("export", "--format", "parquet", url=url_of(store), stdout=end) as process:
        _, error = process.communicate()
    os.close(terminal)
    os.close(end)
    assert process.returncode == 2
    assert "parquet is not for a terminal" in error
