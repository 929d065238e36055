"""How the command ends: Ctrl-C, SIGTERM, closed output, and that it says nothing but what it must."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text

from messagedb_sa._revisions import lock_out_other_upgrades
from messagedb_sa.cli._exit_codes import failure_of
from messagedb_sa.errors import CannotSettle

from ..waits import wait_until, wait_until_blocked
from .support import PROGRAM, environment, messagedb, running

ENDS = [pytest.param(signal.SIGINT, 130, id="sigint"), pytest.param(signal.SIGTERM, 143, id="sigterm")]


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@pytest.mark.parametrize(("number", "code"), ENDS)
def test_a_signal_ends_it_while_it_waits_for_the_database(
    number: signal.Signals, code: int, driver: str, empty_database: Engine
) -> None:
    url = make_url(empty_database.url).set(drivername=f"postgresql+{driver}").render_as_string()
    with empty_database.begin() as connection:
        lock_out_other_upgrades(connection)
        with running("install", url=url) as process:
            wait_until_blocked(empty_database)
            process.send_signal(number)
            out, error = process.communicate()
            assert (process.returncode, out, error) == (code, "", "")
        # Its query does not go on in the server.
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        wait_until(lambda: connection.scalar(waiting) == 0, "nobody waits for the lock")


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@pytest.mark.parametrize(("number", "code"), ENDS)
def test_a_signal_ends_it_while_it_connects(number: signal.Signals, code: int, driver: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with running("current", url=f"postgresql+{driver}://127.0.0.1:{port}/app?sslmode=disable") as process:
            accepted, _ = silent.accept()
            with accepted:
                # It has asked to log in, and waits for an answer.
                assert accepted.recv(1)
                process.send_signal(number)
                out, error = process.communicate()
                assert (process.returncode, out, error) == (code, "", "")


INTERRUPTED_RESET = """
import os, signal
from sqlalchemy import event
from sqlalchemy.pool import Pool
from messagedb_sa.cli._app import run

event.listen(Pool, "reset", lambda *_: os.kill(os.getpid(), signal.{name}))
raise SystemExit(run())
"""


@pytest.mark.parametrize(("number", "code"), ENDS)
def test_a_signal_ends_it_while_a_connection_goes_back_to_its_pool(
    number: signal.Signals, code: int, messagedb_url: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_RESET.format(name=number.name), "current"],
        cwd="/",
        env=environment(MESSAGEDB_URL=messagedb_url),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_it_waits_for_a_connection_no_longer_than_the_url_says(driver: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        done = messagedb("current", url=f"postgresql+{driver}://127.0.0.1:{port}/app?sslmode=disable&connect_timeout=2")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert "timeout expired" in done.stderr


def test_a_reader_that_has_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = messagedb("sql", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_pipeline_with_head_prints_its_lines_only() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{PROGRAM} sql | head -n 1"], env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "BEGIN;\n", "")


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-", "0<&-"])
def test_it_works_with_closed_streams(closed: str) -> None:
    done = subprocess.run(["bash", "-c", f"{PROGRAM} sql {closed}"], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_ignored_signal_stays_ignored(empty_database: Engine) -> None:
    ignoring = (
        "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"os.execv({PROGRAM!r}, ['messagedb', 'install'])"
    )
    url = empty_database.url.render_as_string()
    with empty_database.connect() as connection:
        with connection.begin():
            lock_out_other_upgrades(connection)
            process = subprocess.Popen(
                [sys.executable, "-c", ignoring], env=environment(MESSAGEDB_URL=url), stdout=subprocess.PIPE, text=True
            )
            wait_until_blocked(empty_database)
            process.send_signal(signal.SIGTERM)
        with process:
            assert process.communicate()[0].startswith("The store is at ")
    assert process.returncode == 0


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from messagedb_sa.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'messagedb: the package typer is missing: pip install "messagedb-sa[cli]"\n'


def test_python_runs_it_as_a_module_too() -> None:
    command = [sys.executable, "-m", "messagedb_sa", "--version"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, messagedb("--version").stdout)


@pytest.mark.parametrize("arguments", [["--help"], ["downgrade", "--help"], ["--version"], ["none"]])
def test_it_starts_without_what_only_the_work_needs(arguments: list[str]) -> None:
    slow = ["sqlalchemy", "alembic", "psycopg2", "psycopg", "asyncpg", "starlette", "uvicorn", "jinja2", "pyarrow"]
    code = (
        "import atexit, sys; from messagedb_sa.cli import main\n"
        f"atexit.register(lambda: print([each for each in {slow} if each in sys.modules], file=sys.stderr))\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment(), capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_what_is_wrong_on_the_command_line_is_told() -> None:
    for arguments in (["none"], ["current", "--none"], ["downgrade"], ["dev", "--port", "x"]):
        done = messagedb(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Usage: messagedb" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(shell: str) -> None:
    script = messagedb(variables={"_MESSAGEDB_COMPLETE": f"source_{shell}"})
    assert (script.returncode, script.stderr) == (0, "")
    assert f"complete_{shell}" in script.stdout
    asked = {
        "bash": {"COMP_WORDS": "messagedb cur", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "messagedb cur"},
        "fish": {"_TYPER_COMPLETE_ARGS": "messagedb cur", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    done = messagedb(variables={"_MESSAGEDB_COMPLETE": f"complete_{shell}", **asked})
    assert "current" in done.stdout
    assert "downgrade" not in done.stdout


def test_bash_completes_commands_and_options() -> None:
    code = (
        f"PATH={Path(PROGRAM).parent}:$PATH; source <(_MESSAGEDB_COMPLETE=source_bash messagedb);"
        "COMP_WORDS=(messagedb upg); COMP_CWORD=1; _messagedb_completion messagedb; echo ${COMPREPLY[@]};"
        "COMP_WORDS=(messagedb downgrade --disc); COMP_CWORD=2; _messagedb_completion messagedb; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", code], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["upgrade", "--discard-messages"], "")


def test_an_error_about_a_gap_names_no_argument_of_python() -> None:
    failure = failure_of(
        CannotSettle(7, "a standby server does not know which transactions write on the primary"), None
    )
    assert failure is not None
    assert failure.code == 1
    assert failure.text.startswith("$all has a gap at global position 7, where a message may still be committed: ")
    assert failure.text.endswith("on the primary. Use the URL of the primary server")
