"""messagedb serve: it listens where it is told, asks for a token where others can reach it, and ends cleanly."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Engine, make_url

from messagedb_sa import Store

from ..waits import HANG
from .support import messagedb, running

TOKEN = "a-token-of-the-tests"


@contextmanager
def serving(url: str, *options: str, **more: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the URL that it prints."""
    with running("serve", "--json", "--port", "0", *options, url=url, **more) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, json.loads(line)["url"]


def get(url: str, path: str = "/", **headers: str) -> tuple[int, str]:
    return ask("GET", url, path, **headers)


def ask(method: str, url: str, path: str, body: str | None = None, **headers: str) -> tuple[int, str]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=HANG)
    try:
        connection.request(
            method, path, body, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def stop(process: subprocess.Popen[str], how: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
    process.send_signal(how)
    out, err = process.communicate(timeout=HANG)
    return process.returncode, out, err


def test_it_serves_this_machine_only_and_without_a_token(messagedb_url: str, store: Store) -> None:
    store.write("account-1", "Opened", {})
    with serving(messagedb_url) as (process, url):
        assert urlsplit(url)._replace(netloc="").geturl() == "http:///"
        status, page = get(url)
        assert status == 200
        assert "account-1" in page
        # A name of somebody else that leads here, and a proxy that passes on what comes from elsewhere.
        assert get(url, Host="evil.example")[0] == 400
        assert get(url, X_Forwarded_For="203.0.113.7")[0] == 403
        # Whatever address the machine has besides, nobody listens there.
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", urlsplit(url).port or 0)):
            pass
        assert stop(process) == (0, "", "")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_while_a_page_follows(messagedb_url: str, store: Store, how: signal.Signals) -> None:
    with serving(messagedb_url) as (process, url):
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=HANG)
        connection.request("GET", "/events")
        answer = connection.getresponse()
        assert answer.readline().startswith(b"retry")
        assert stop(process, how) == (0, "", "")
        # It was ended, not cut: after the first event comes the end of the answer.
        assert answer.read().endswith(b"\n\n")
        connection.close()


def test_for_other_machines_a_token_is_made_and_needed(messagedb_url: str, store: Store) -> None:
    with serving(messagedb_url, "--host", "0.0.0.0") as (process, url):
        token = urlsplit(url).fragment
        assert len(token) >= 24
        for path in ("/", "/all", "/live", "/events", "/consumers", "/parked"):
            assert get(url, path)[0] == 401, path
        assert get(url, "/all", Authorization="Bearer wrong-wrong-wrong-wrong")[0] == 401
        assert get(url, "/all", Authorization=f"Bearer {token}")[0] == 200
        stop(process)
    with serving(messagedb_url, "--host", "0.0.0.0") as (_, other):
        assert urlsplit(other).fragment != token


@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_token_can_be_given(messagedb_url: str, store: Store, way: str) -> None:
    options = ["--token", TOKEN] if way == "option" else []
    variables = {"MESSAGEDB_TOKEN": TOKEN} if way == "variable" else {}
    with serving(messagedb_url, *options, variables=variables) as (_, url):
        assert urlsplit(url).fragment == TOKEN
        assert get(url, "/all")[0] == 401
        assert get(url, "/all", Authorization=f"Bearer {TOKEN}")[0] == 200


def test_a_short_token_is_refused_and_not_repeated(messagedb_url: str, store: Store) -> None:
    done = messagedb("serve", "--port", "0", "--token", "hunter2", url=messagedb_url)
    assert done.returncode == 2
    assert "16 or more" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_people_are_told_where_it_is_and_no_password(messagedb_url: str, store: Store) -> None:
    with_password = make_url(messagedb_url).set(password="hunter2").render_as_string(hide_password=False)
    with running("serve", "--port", "0", url=with_password) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert "runs until you press Ctrl-C" in lines[0]
        assert lines[2].strip().startswith("http://127.0.0.1:")
        code, out, err = stop(process)
        assert (code, err) == (0, "")
    assert "hunter2" not in "".join(lines) + out


def test_actions_are_for_those_who_switch_them_on(messagedb_url: str, store: Store, tmp_path: Path) -> None:
    with serving(messagedb_url) as (_, url):
        assert get(url, "/confirm")[0] == 404
    (tmp_path / "shop.py").write_text(
        "import os\nfrom messagedb_sa import Consumer, Store\n"
        "store = Store.from_url(os.environ['MESSAGEDB_URL'])\n"
        "mailer = Consumer(store, 'account', print, 'mailer')\nall = [mailer]\n"
    )
    options = ["--actions", "--consumers", "shop:mailer", "--consumers", "shop:all"]
    with serving(messagedb_url, *options, cwd=tmp_path) as (_, url):
        assert get(url, "/confirm")[0] == 400


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--consumers", "shop"], "must be MODULE:NAME"),
        (["--actions", "--consumers", "nowhere:all"], "No module named 'nowhere'"),
        (["--actions", "--consumers", "json:nothing"], "nothing"),
        (["--actions", "--consumers", "json:dumps"], "must be a Consumer"),
        (["--actions", "--consumers", "json:__name__"], "must be a Consumer"),
        (["--consumers", "json:__all__"], "must be a Consumer"),
    ],
    ids=["no name", "no module", "no attribute", "a function", "a text", "other things"],
)
def test_consumers_that_cannot_be_imported_are_named(
    messagedb_url: str, store: Store, options: list[str], expected: str
) -> None:
    done = messagedb("serve", "--port", "0", *options, url=messagedb_url)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named(messagedb_url: str, store: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = messagedb("serve", "--port", port, url=messagedb_url)
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_says_at_once_that_there_is_no_store(empty_database: Engine) -> None:
    url = empty_database.url.render_as_string(hide_password=False)
    done = messagedb("serve", "--port", "0", url=url)
    assert done.returncode == 4, done.stderr
