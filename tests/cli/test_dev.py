"""``messagedb dev``: a PostgreSQL of one's own, thrown away or kept, and that nothing of it stays behind."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from messagedb_sa import Store

from ..support import HEAD, free_port
from ..waits import wait_until
from .support import PROGRAM, environment, messagedb, on_terminal, plain, rows, running

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about what only root meets; this is an ordinary user")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in every user's reach, in which servers have their sockets too."""
    # pytest's tmp_path is closed to other users, and too long a path for a socket.
    folder = Path(tempfile.mkdtemp(prefix="mdsa-", dir="/tmp")).resolve()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def dev(place: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The command, and what it has printed when the server runs."""
    with running("dev", "--json", *arguments, variables={"TMPDIR": str(place)}) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, json.loads(line)


def ended(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> int:
    process.send_signal(number)
    out, error = process.communicate()
    assert (out, error) == ("", "")
    return process.returncode


def store_at(url: str) -> Store:
    return Store.from_url(url, poolclass=NullPool)


def setting(url: str, name: str) -> object:
    with create_engine(make_url(url).set(drivername="postgresql+psycopg2"), poolclass=NullPool).connect() as connection:
        return connection.scalar(text("SELECT current_setting(:name)"), {"name": name})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["sigint", "sigterm"])
def test_it_runs_with_a_store_until_it_is_told_to_end_and_leaves_nothing(place: Path, number: signal.Signals) -> None:
    with dev(place) as (process, printed):
        assert printed == {"url": printed["url"], "folder": None, "revision": HEAD}
        assert store_at(printed["url"]).write("account-1", "Opened", {}) == 0
        assert rows(messagedb("current", "--json", url=printed["url"])) == [{"revision": HEAD, "newest": HEAD}]
        assert setting(printed["url"], "listen_addresses") == ""
        assert ended(process, number) == 0
    assert list(place.iterdir()) == []


def test_a_folder_keeps_the_data_for_the_next_time(place: Path) -> None:
    folder = place / "new" / "kept"
    with dev(place, "--folder", str(folder)) as (process, printed):
        assert printed["folder"] == str(folder)
        # Other than in a server that is thrown away.
        assert setting(printed["url"], "fsync") == "on"
        assert setting(printed["url"], "synchronous_commit") == "on"
        store_at(printed["url"]).write("account-1", "Opened", {"owner": "Ada"})
        again = messagedb("dev", "--folder", str(folder))
        assert (again.returncode, again.stdout) == (1, "")
        assert again.stderr == f"messagedb: another server is running on {folder}\n"
        assert ended(process) == 0
    assert {path.name for path in place.iterdir()} == {"new"}
    with dev(place, "--folder", str(folder)) as (process, printed):
        assert [message.data for message in store_at(printed["url"]).read("account-1")] == [{"owner": "Ada"}]
        assert ended(process) == 0


def test_if_it_is_killed_the_server_ends_and_what_was_written_is_there(place: Path) -> None:
    folder = place / "kept"
    for number in range(3):
        with dev(place, "--folder", str(folder)) as (process, printed):
            store = store_at(printed["url"])
            assert store.write("account-1", "Opened", {}) == number
            process.kill()
            wait_until(lambda: {path.name for path in place.iterdir()} == {"kept"}, "the server has ended")
            with pytest.raises(OperationalError):
                store.read("account-1")
        assert not (folder / "data" / "postmaster.pid").exists()


def test_a_server_that_was_killed_too_starts_again(place: Path) -> None:
    folder = place / "kept"
    with dev(place, "--folder", str(folder)) as (process, printed):
        store_at(printed["url"]).write("account-1", "Opened", {})
        os.kill(int((folder / "data" / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
        out, error = process.communicate()
        assert (process.returncode, out, error) == (1, "", "messagedb: the server has ended\n")
    # As if the machine had lost its power: the file says that a server is ready.
    assert (folder / "data" / "postmaster.pid").read_text().rstrip().endswith("ready")
    with dev(place, "--folder", str(folder)) as (process, printed):
        assert len(store_at(printed["url"]).read("account-1")) == 1
        assert ended(process) == 0


def test_it_goes_on_when_a_connection_of_the_server_crashes(place: Path) -> None:
    with dev(place) as (process, printed):
        url = make_url(printed["url"]).set(drivername="postgresql+psycopg2")
        with create_engine(url, poolclass=NullPool).connect() as connection:
            backend = connection.scalar(text("SELECT pg_backend_pid()"))
            os.kill(backend, signal.SIGKILL)
            connection.invalidate()

        def answers() -> bool:
            try:
                return setting(printed["url"], "port") is not None
            except OperationalError:
                return False

        wait_until(answers, "the server has recovered")
        assert process.poll() is None
        assert ended(process) == 0


def test_a_folder_that_was_interrupted_before_it_had_data_begins_anew(place: Path) -> None:
    folder = place / "kept"
    with running("dev", "--folder", str(folder), variables={"TMPDIR": str(place)}) as process:
        wait_until(lambda: (folder / "data.new").exists(), "initdb runs")
        process.kill()
    wait_until(lambda: {path.name for path in place.iterdir()} == {"kept"}, "the keeper has ended")
    with dev(place, "--folder", str(folder)) as (process, _):
        assert ended(process) == 0


def test_over_tcp_it_wants_the_password_that_stays_with_the_data(place: Path) -> None:
    port = free_port()
    arguments = "--folder", str(place / "kept"), "--port", str(port)
    with dev(place, *arguments) as (process, printed):
        url = make_url(printed["url"])
        assert (url.host, url.port, url.username, url.database) == ("127.0.0.1", port, "postgres", "message_store")
        store_at(printed["url"]).write("account-1", "Opened", {})
        assert setting(printed["url"], "listen_addresses") == "127.0.0.1"
        for wrong in ("", ":wrong"):
            with pytest.raises(OperationalError, match="password"):
                store_at(printed["url"].replace(f":{url.password}@", f"{wrong}@")).read("account-1")
        taken = messagedb("dev", "--port", str(port), variables={"TMPDIR": str(place)})
        assert (taken.returncode, taken.stdout) == (1, "")
        assert taken.stderr == f"messagedb: port {port} is in use: pass another --port, or leave it out\n"
        password_file = place / "kept" / "password"
        assert password_file.stat().st_mode & 0o777 == 0o600
        # Other users see the arguments of every process.
        shown = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
        assert str(place / "kept") in shown
        assert str(url.password) not in shown
        assert ended(process) == 0
    with dev(place, *arguments) as (process, printed):
        assert make_url(printed["url"]) == url
        assert len(store_at(printed["url"]).read("account-1")) == 1
        assert ended(process) == 0
    password_file.unlink()
    with dev(place, *arguments) as (process, printed):
        assert make_url(printed["url"]).password != url.password
        assert len(store_at(printed["url"]).read("account-1")) == 1
        assert ended(process) == 0


def test_a_folder_with_other_files_is_left_as_it_is(place: Path) -> None:
    (place / "letter.txt").write_text("Dear Ada")
    done = messagedb("dev", "--folder", str(place))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"messagedb: {place} has other files in it: choose a new or an empty folder\n"
    assert [path.name for path in place.iterdir()] == ["letter.txt"]
    file = messagedb("dev", "--folder", str(place / "letter.txt"))
    assert (file.returncode, file.stderr.count("\n"), "Traceback" in file.stderr) == (1, 1, False)


@as_root
def test_root_is_told_of_a_folder_that_the_servers_user_cannot_enter(place: Path) -> None:
    place.chmod(0o700)
    done = messagedb("dev", "--folder", str(place / "kept"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "PostgreSQL refuses to run as root" in done.stderr


@as_root
def test_an_ordinary_user_runs_it_too(place: Path) -> None:
    account = pwd.getpwnam("daemon")
    try:
        subprocess.run([sys.executable, "-c", ""], user=account.pw_uid, stderr=subprocess.DEVNULL, check=True)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("other users cannot run this Python")
    home = place / "home"
    home.mkdir()
    os.chown(home, account.pw_uid, account.pw_gid)
    command = [PROGRAM, "dev", "--json", "--folder", str(home / "kept")]
    who: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    with running(command=command, variables={"TMPDIR": str(home), "HOME": str(home)}, **who) as process:
        assert process.stdout is not None
        printed = json.loads(process.stdout.readline())
        assert (home / "kept" / "data").stat().st_uid == account.pw_uid
        assert setting(printed["url"], "server_encoding") == "UTF8"
        assert ended(process) == 0


def test_people_are_told_what_to_do_next(place: Path) -> None:
    seen: list[str] = []

    def use_it(terminal: Any) -> None:
        terminal.read_until("messagedb current")
        (line,) = (line.strip() for line in terminal.output.splitlines() if "export MESSAGEDB_URL=" in line)
        done = subprocess.run(
            ["bash", "-c", f"{line}; {PROGRAM} current --json"], env=environment(), capture_output=True, text=True
        )
        seen.append(done.stdout)
        terminal.type("\x03")

    code, shown = on_terminal("dev", then=use_it, columns=40, TMPDIR=str(place))
    assert (code, seen) == (0, [f'{{"revision": "{HEAD}", "newest": "{HEAD}"}}\n'])
    assert "runs until you press Ctrl-C. Its data is thrown away at the end." in plain(shown)


def test_without_a_server_to_run_it_says_how_to_get_one(tmp_path: Path) -> None:
    done = messagedb("dev", variables={"MESSAGEDB_POSTGRES": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert 'pip install "messagedb-sa[embedded]"' in done.stderr
