"""The commands export, import, copy and verify."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from messagedb_sa import Store, transfer

from ..transfer.support import contents, exported, roll_back
from ..waits import wait_until
from .support import messagedb, rows, running


def url_of(store: Store) -> str:
    return store.engine.url.render_as_string(hide_password=False)


def test_a_store_is_copied_and_compared(store: Store, target: Store) -> None:
    roll_back(store)
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(3)])
    both = url_of(store), url_of(target)
    done = messagedb("copy", *both, "--yes")
    assert (done.returncode, done.stdout, done.stderr) == (0, "copied 3 messages, up to global position 4\n", "")
    assert contents(target) == contents(store)
    assert rows(messagedb("copy", *both, "--yes", "--json")) == [{"messages": 0, "last_global_position": 4}]
    done = messagedb("verify", *both)
    assert (done.returncode, done.stdout, done.stderr) == (0, "equal: 3 messages, up to global position 4\n", "")
    assert rows(messagedb("verify", *both, "--json")) == [{"messages": 3, "last_global_position": 4}]


def test_differences_are_listed_and_are_a_failure(store: Store, target: Store) -> None:
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(3)])
    transfer.copy(store, target)
    store.write("account-1", "Closed", {})
    (last,) = store.read("account-1", position=3)
    done = messagedb("verify", url_of(store), url_of(target), "--json")
    assert done.returncode == 1
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {
            "global_position": 4,
            "stream_name": "account-1",
            "position": 3,
            "id": last.id,
            "what": "missing in the target",
        }
    ]
    assert done.stderr == "messagedb: the target differs from the source: compared up to global position 4\n"
    assert messagedb("verify", url_of(store), url_of(target), "--up-to", "3").returncode == 0


def test_a_copy_asks_first_and_refuses_another_store(store: Store, target: Store) -> None:
    store.write("account-1", "Opened", {})
    target.write("account-1", "Opened", {})
    done = messagedb("copy", url_of(store), url_of(target))
    assert (done.returncode, done.stdout) == (2, "")
    assert "pass --yes" in done.stderr
    done = messagedb("copy", url_of(store), url_of(target), "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("messagedb: the target is not a copy of the source: ")
    assert len(contents(target)) == 1


def test_an_open_transaction_is_a_failure_that_says_where(store: Store, target: Store, tmp_path: Path) -> None:
    store.write("account-1", "Opened", {})
    with store.engine.connect() as connection:
        Store(connection).write("order-1", "Placed", {})
        store.write("account-1", "Closed", {})
        for command in (
            ("copy", url_of(store), url_of(target), "--yes"),
            ("export", "--url", url_of(store), "--output", str(tmp_path / "file")),
        ):
            done = messagedb(*command, "--settle-seconds", "0")
            assert done.returncode == 1
            assert "1 messages, up to global position 1\n" in done.stdout
            assert "stopped before global position 2" in done.stderr
    assert len(contents(target)) == len((tmp_path / "file").read_bytes().splitlines()) == 1


def test_a_copy_follows_until_it_is_interrupted(store: Store, target: Store) -> None:
    store.write("account-1", "Opened", {})
    with running("copy", url_of(store), url_of(target), "--yes", "--follow") as process:
        wait_until(lambda: len(contents(target)) == 1)
        store.write("account-1", "Closed", {})
        wait_until(lambda: contents(target) == contents(store))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert err == ""
    assert out.splitlines()[0] == "copied 1 messages, up to global position 1"


def test_a_database_that_cannot_be_reached_is_named_without_its_password(store: Store) -> None:
    away = "postgresql://somebody:secret@localhost:1/away"
    for both in ((url_of(store), away), (away, url_of(store))):
        done = messagedb("verify", *both)
        assert (done.returncode, done.stdout) == (3, "")
        assert "somebody:***@localhost:1/away" in done.stderr
        assert "secret" not in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_url_that_is_wrong_is_named(store: Store) -> None:
    wrong = "somebody:secret@localhost/away"
    for both, said in (((wrong, url_of(store)), "SOURCE"), ((url_of(store), wrong), "TARGET")):
        done = messagedb("copy", *both, "--yes")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"messagedb: {said}: must be a database URL")
        assert "secret" not in done.stderr


def test_what_only_the_owner_may_do_is_told_by_the_exit_code(store: Store, tmp_path: Path, login: Any) -> None:
    store.write("account-1", "Opened", {})
    file = str(tmp_path / "all.jsonl")
    transfer.export_messages(store, "$all", file)
    own = store.engine.url.set(username=login("messagedb_nobody")).render_as_string(hide_password=False)
    for command in (("import", file, "--url", own), ("copy", url_of(store), own)):
        done = messagedb(*command, "--yes")
        assert (done.returncode, done.stdout) == (5, "")
        assert "connect as the owner of the store's tables" in done.stderr


def test_standard_output_gets_the_lines_and_nothing_else(store: Store) -> None:
    store.write_batch("account-1", [("Opened", {"é\n": n}) for n in range(3)])
    store.write("order-1", "Placed", {})
    for name in ("$all", "account", "account-1"):
        done: Any = messagedb("export", name, url=url_of(store), text=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == exported(store, name)


def test_a_reader_that_has_enough_is_no_error(store: Store) -> None:
    store.write_batch("account-1", [("Opened", {"text": "x" * 1000})] * 3000)
    with running("export", url=url_of(store)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait() == 141


def test_a_file_is_written_and_only_overwritten_with_yes(store: Store, target: Store, tmp_path: Path) -> None:
    store.write("account-1", "Opened", {})
    path = str(tmp_path / "export.jsonl.gz")
    url = url_of(store)
    assert rows(messagedb("export", "-o", path, "--json", url=url)) == [{"messages": 1, "last_global_position": 1}]
    store.write("account-1", "Closed", {})
    done = messagedb("export", "-o", path, url=url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "exists. Overwrite it?" in done.stderr
    assert messagedb("export", "-o", path, "--yes", url=url).returncode == 0
    done = messagedb("import", path, "--yes", url=url_of(target))
    assert (done.returncode, done.stdout) == (0, "imported 2 messages, up to global position 2\n")
    assert contents(target) == contents(store)


def test_standard_input_is_imported(store: Store, target: Store, tmp_path: Path) -> None:
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(3)])
    target.write("order-1", "Placed", {})
    path = tmp_path / "export.jsonl"
    transfer.export_messages(store, "account", path)
    with path.open() as lines:
        done = messagedb("import", "-", url=url_of(target), stdin=lines)
    assert done.returncode == 2
    assert "pass --yes" in done.stderr
    with path.open() as lines:
        done = messagedb("import", "-", "--yes", "--new-global-positions", url=url_of(target), stdin=lines)
    assert (done.returncode, done.stdout) == (0, "imported 3 messages, up to global position 4\n")


@pytest.mark.parametrize("options", [(), ("--new-global-positions",)])
def test_each_conflict_is_a_line(store: Store, tmp_path: Path, options: tuple[str, ...]) -> None:
    store.write_batch("account-1", [("Opened", {})] * 2)
    path = tmp_path / "export.jsonl"
    transfer.export_messages(store, "$all", path)
    done = messagedb("import", str(path), "--yes", *options, url=url_of(store))
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == (3 if options else 1)
    assert isinstance(done, subprocess.CompletedProcess)
    assert len(contents(store)) == 2
