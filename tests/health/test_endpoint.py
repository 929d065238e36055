"""The ASGI application for probes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from sqlalchemy import Engine, NullPool, create_engine, event, make_url, text
from starlette.applications import Starlette
from starlette.testclient import TestClient

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, Store, health, install
from messagedb_sa.testing import backdated, temporary_server

from ..consumer.proxy import Proxy
from ..consumer.support import running, write
from ..waits import HANG, wait_in_task_until, wait_until
from .support import Held, ask, get


@pytest.fixture
def engine(messagedb_url: str, store: Store) -> Iterator[Engine]:
    engine = create_engine(messagedb_url)
    yield engine
    engine.dispose()


def test_it_answers_with_json(engine: Engine) -> None:
    own = Store(engine)
    consumer = Consumer(own, "account", lambda _: None, "mailer")
    app = health.endpoint([consumer], store=own, database_seconds=HANG)
    live, ready = get(app, "/live"), get(app, "/ready")
    assert (live.status, json.loads(live.content)) == (200, {"ok": True, "findings": []})
    assert (live.headers["content-type"], live.headers["cache-control"]) == ("application/json", "no-store")
    assert ready.status == 503
    (finding,) = json.loads(ready.content)["findings"]
    assert finding == {
        "kind": "not_running",
        "category": "account",
        "identifier": "mailer",
        "group_member": None,
        "text": "it has not been run",
    }
    with running(consumer):
        wait_until(lambda: get(app, "/ready").status == 200)


def test_other_pages_and_methods_are_refused() -> None:
    app = health.endpoint()
    assert get(app, "/").status == get(app, "/alive").status == 404
    assert get(app, "/live", "POST")[0] == 405
    head = get(app, "/live", "HEAD")
    assert (head.status, head.content, head.headers["content-length"]) == (200, b"", "28")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stuck_handler_is_not_live_and_being_behind_is_not_ready(
    store: Store, messagedb_url: str, asynchronous: bool
) -> None:
    held = Held()
    with backdated(store, datetime.now(timezone.utc) - timedelta(hours=1)) as then:
        write(then, 1)

    async def main() -> None:
        own = AsyncStore.from_url(messagedb_url.replace("psycopg2", "psycopg"))
        consumer = Consumer(store, "account", held, "mailer")
        watched: Store | AsyncStore = own if asynchronous else store
        patient = health.endpoint([consumer], store=watched, database_seconds=HANG)
        impatient = health.endpoint([consumer], stuck_seconds=0)
        with running(consumer):
            await wait_in_task_until(lambda: held.messages)
            assert (await ask(patient, "/live")).status == 200
            assert (await ask(patient, "/ready")).kinds == ["missing"]
            assert (await ask(impatient, "/live")).kinds == ["stuck"]
            held.release()
            while (await ask(patient, "/ready")).status != 200:
                await asyncio.sleep(0.01)
            # Between two looks: one that is late by a moment has waited longer than no time at all.
            while (await ask(impatient, "/live")).status != 200:
                await asyncio.sleep(0.01)
        await own.engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg_async", "asyncpg"])
def test_a_frozen_database_is_not_ready_but_live_until_it_answers_again(
    store: Store, messagedb_url: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messagedb_sa._attempts._FRESH_SECONDS", 0.0)

    async def main() -> None:
        proxy = Proxy(messagedb_url)
        own: Any = (Store if driver == "psycopg2" else AsyncStore).from_url(proxy.url(driver))
        app = health.endpoint(store=own, database_seconds=0.5)
        try:
            while (await ask(app, "/ready")).status != 200:
                await asyncio.sleep(0.01)
            proxy.freeze()
            for _ in range(2):
                answer = await ask(app, "/ready")
                assert (answer.status, answer.kinds) == (503, ["no_answer"])
                assert (await ask(app, "/live")).status == 200
            proxy.thaw()
            while (await ask(app, "/ready")).status != 200:
                await asyncio.sleep(0.01)
        finally:
            proxy.close()
            if driver == "psycopg2":
                own.engine.dispose()
            else:
                await own.engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg_async", "asyncpg"])
def test_a_connection_without_an_answer_is_given_up(
    store: Store, messagedb_url: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would be up to the kernel, after a quarter of an hour, to find out that the network was cut."""
    monkeypatch.setattr("messagedb_sa._attempts._GIVE_UP_SECONDS", 0.0)
    monkeypatch.setattr("messagedb_sa._attempts._FRESH_SECONDS", 0.0)

    async def main() -> None:
        own: Any = (Store if driver == "psycopg2" else AsyncStore).from_url(
            messagedb_url.replace("psycopg2", driver.removesuffix("_async"))
        )
        app = health.endpoint(store=own, expected=[("account", "mailer")], database_seconds=0.3)
        while (await ask(app, "/ready")).status != 200:
            await asyncio.sleep(0.01)
        with store.engine.begin() as connection:
            # The statement of the check waits for this lock for as long as the block lasts.
            connection.execute(text("LOCK TABLE message_store.messages"))
            texts: set[str] = set()
            while not any("could not be asked" in each for each in texts):
                answer = json.loads((await ask(app, "/ready")).content)
                texts |= {finding["text"] for finding in answer["findings"]}
        assert any("has not answered" in each for each in texts)
        while (await ask(app, "/ready")).status != 200:
            await asyncio.sleep(0.01)
        await own.engine.dispose() if driver != "psycopg2" else own.engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg_async", "asyncpg"])
def test_a_host_that_never_answers_is_not_waited_for_when_another_does(
    store: Store, messagedb_url: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a host that vanished, whose name has the address of another one now. Drivers wait for it without a limit."""
    monkeypatch.setattr("messagedb_sa._attempts._CONNECT_SECONDS", 0.5)

    async def main() -> None:
        own: Any = (Store if driver == "psycopg2" else AsyncStore).from_url(
            messagedb_url.replace("psycopg2", driver.removesuffix("_async"))
        )
        connected: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as silent:
            host, port = silent.getsockname()

            @event.listens_for(own.engine if driver == "psycopg2" else own.engine.sync_engine, "do_connect")
            def first_to_the_silent_one(*arguments: Any) -> None:
                connected.append("connected")
                if len(connected) == 1:
                    arguments[3].update(host=host, port=port)

            app = health.endpoint(store=own, database_seconds=0.2)
            assert (await ask(app, "/ready")).kinds == ["no_answer"]
            while (await ask(app, "/ready")).status != 200:
                assert (await ask(app, "/live")).status == 200
                await asyncio.sleep(0.01)
            assert len(connected) > 1
        await own.engine.dispose() if driver != "psycopg2" else own.engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg_async", "asyncpg"])
def test_a_server_that_is_frozen_or_stopped_is_not_ready_until_it_runs_again(
    tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messagedb_sa._attempts._FRESH_SECONDS", 0.0)
    tmp_path.chmod(0o755)
    for each in tmp_path.parents[:-2]:
        each.chmod(0o755)
    place = tmp_path / "server"

    async def main() -> None:
        # A new connection each time needs the postmaster; a kept one needs its own process only.
        options: dict[str, Any] = {"poolclass": NullPool}
        where: list[str] = []
        own: Any = (Store if driver == "psycopg2" else AsyncStore).from_url(
            f"postgresql+{driver.removesuffix('_async')}://postgres@/postgres", **options
        )

        @event.listens_for(own.engine if driver == "psycopg2" else own.engine.sync_engine, "do_connect")
        def to_where_it_runs(*arguments: Any) -> None:
            arguments[3].update(host=where[-1])

        app = health.endpoint(store=own, database_seconds=0.5)

        async def not_ready() -> None:
            assert (await ask(app, "/ready")).kinds == ["no_answer"]
            assert (await ask(app, "/live")).status == 200

        async def until_ready() -> None:
            while (await ask(app, "/ready")).status != 200:
                await asyncio.sleep(0.01)

        for _ in range(2):
            with temporary_server(folder=place) as url:
                where.append(str(make_url(url).query["host"]))
                engine = create_engine(url, poolclass=NullPool)
                install.upgrade(engine)
                await until_ready()
                postmaster = int((place / "data" / "postmaster.pid").read_text().splitlines()[0])
                os.kill(postmaster, signal.SIGSTOP)
                try:
                    await not_ready()
                    await not_ready()
                finally:
                    os.kill(postmaster, signal.SIGCONT)
                await until_ready()
            await not_ready()
        await own.engine.dispose() if driver != "psycopg2" else own.engine.dispose()

    asyncio.run(main())


def test_if_no_thread_can_start_the_next_probe_tries_again(engine: Engine) -> None:
    app = health.endpoint(store=Store(engine), database_seconds=HANG)
    # More than there is.
    before = threading.stack_size(2**46)
    try:
        assert get(app, "/ready").kinds == ["no_answer"]
        assert get(app, "/live").status == 200
    finally:
        threading.stack_size(before)
    wait_until(lambda: get(app, "/ready").status == 200)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_any_number_of_probes_asks_once(store: Store, messagedb_url: str, asynchronous: bool) -> None:
    async def main() -> None:
        url = messagedb_url.replace("psycopg2", "psycopg") if asynchronous else messagedb_url
        own: Any = (AsyncStore if asynchronous else Store).from_url(url)
        engine: Any = own.engine.sync_engine if asynchronous else own.engine
        asked: list[str] = []
        event.listen(engine, "checkout", lambda *_: asked.append("asked"))
        app = health.endpoint(store=own, expected=[("account", "mailer")], database_seconds=HANG)
        with store.engine.begin() as connection:
            connection.execute(text("LOCK TABLE message_store.messages"))
            probes = [asyncio.create_task(ask(app, "/ready")) for _ in range(50)]
            await wait_in_task_until(lambda: asked)
            # Each of them has had its turn before this one.
            await asyncio.sleep(0)
            assert not any(probe.done() for probe in probes)
        assert [(await probe).status for probe in probes] == [200] * 50
        assert asked == ["asked"]
        await own.engine.dispose() if asynchronous else own.engine.dispose()

    asyncio.run(main())


def test_an_answer_serves_for_a_second(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messagedb_sa._attempts._FRESH_SECONDS", HANG)
    asked: list[str] = []
    event.listen(engine, "checkout", lambda *_: asked.append("asked"))
    app = health.endpoint(store=Store(engine), database_seconds=HANG)
    # Each on an event loop of its own.
    assert [get(app, "/ready").status for _ in range(5)] == [200] * 5
    assert asked == ["asked"]
    monkeypatch.setattr("messagedb_sa._attempts._FRESH_SECONDS", 0.0)
    assert get(app, "/ready").status == 200
    assert len(asked) == 2


def test_a_database_without_a_store_is_not_ready(empty_database: Engine) -> None:
    answer = get(health.endpoint(store=Store(empty_database), database_seconds=HANG), "/ready")
    assert answer.status == 503
    (finding,) = json.loads(answer.content)["findings"]
    assert (finding["kind"], finding["text"]) == (
        "no_answer",
        "the database could not be asked: StoreNotInstalled",
    )


def test_it_can_be_mounted(engine: Engine) -> None:
    app = Starlette()
    app.mount("/health", health.endpoint(store=Store(engine), database_seconds=HANG))
    with TestClient(app) as client:
        assert client.get("/health/live").json() == client.get("/health/ready").json() == {"ok": True, "findings": []}
        assert client.get("/health/other").status_code == 404


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_worker_without_a_web_application_serves_it_by_itself(engine: Engine) -> None:
    """Beside a consumer that runs in the main thread, as the manual shows it."""
    own = Store(engine)
    consumer = Consumer(own, "account", lambda _: None, "mailer")
    app = health.endpoint([consumer], store=own, database_seconds=HANG)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        host, port = server.servers[0].sockets[0].getsockname()
        assert httpx2.get(f"http://{host}:{port}/ready", timeout=HANG).status_code == 503
        with running(consumer):
            wait_until(lambda: httpx2.get(f"http://{host}:{port}/ready", timeout=HANG).status_code == 200)
    finally:
        server.should_exit = True
        thread.join(HANG)


def test_an_asynchronous_consumer_and_the_application_share_an_event_loop(store: Store, messagedb_url: str) -> None:
    async def main() -> None:
        own = AsyncStore.from_url(messagedb_url.replace("psycopg2", "asyncpg"))
        consumer = AsyncConsumer(own, "account", lambda _: None, "mailer")
        app = health.endpoint([consumer], store=own, database_seconds=HANG)
        task = asyncio.create_task(consumer.run())
        while (await ask(app, "/ready")).status != 200:
            await asyncio.sleep(0.01)
        consumer.stop()
        await task
        assert (await ask(app, "/ready")).kinds == ["not_running"]
        await own.engine.dispose()

    asyncio.run(main())
