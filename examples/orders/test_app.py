"""The application's tests, on a real PostgreSQL database with all revisions, as in production."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import uvicorn
from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import Session

from messagedb_sa import Store, install
from messagedb_sa.testing import temporary_database
from orders.app import Order, create_app

ALEMBIC_INI = Path(__file__).with_name("alembic.ini")


@pytest.fixture(scope="module")
def engine(messagedb_server_url: str) -> Iterator[Engine]:
    with temporary_database(messagedb_server_url) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        patch.setenv("MESSAGEDB_URL", url)
        command.upgrade(Config(ALEMBIC_INI, ini_section="messagedb"), "head")
        command.upgrade(Config(ALEMBIC_INI), "head")
        engine = create_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture
def client(engine: Engine) -> TestClient:
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE orders, message_store.messages"))
    return TestClient(create_app(engine))


def test_an_order_is_a_row_and_a_message(client: TestClient, engine: Engine) -> None:
    answer = client.post("/orders", json={"item": "lamp", "quantity": 2})
    assert answer.status_code == 201
    (message,) = Store(engine).read_category("order")
    assert (message.type, message.data) == ("Placed", {"item": "lamp", "quantity": 2})
    with Session(engine) as session:
        order = session.scalars(select(Order)).one()
    assert (message.stream_id, order.status) == (str(order.id), "placed")


def test_a_client_with_the_latest_version_can_cancel_an_order(client: TestClient) -> None:
    id = client.post("/orders", json={"item": "lamp", "quantity": 2}).json()["id"]
    assert client.post(f"/orders/{id}/cancel", json={"reason": "too late", "version": 0}).json()["version"] == 1
    assert client.get(f"/orders/{id}/history").json() == [
        {"version": 0, "type": "Placed", "item": "lamp", "quantity": 2},
        {"version": 1, "type": "Cancelled", "reason": "too late"},
    ]


def test_a_client_with_an_old_version_gets_409_and_changes_nothing(client: TestClient, engine: Engine) -> None:
    id = client.post("/orders", json={"item": "lamp", "quantity": 2}).json()["id"]
    Store(engine).write(f"order-{id}", "Shipped", {})
    answer = client.post(f"/orders/{id}/cancel", json={"reason": "too late", "version": 0})
    assert answer.status_code == 409
    assert answer.json() == {"detail": "the order is at version 1"}
    with Session(engine) as session:
        assert session.scalars(select(Order.status)).one() == "placed"


def test_a_refused_order_leaves_no_row_and_no_message(client: TestClient, engine: Engine) -> None:
    answer = client.post("/orders", json={"item": "lamp\0", "quantity": 2})
    assert answer.status_code == 422
    assert "NUL" in answer.json()["detail"]
    assert Store(engine).read_category("order") == []
    with Session(engine) as session:
        assert session.scalars(select(Order)).all() == []


def test_a_platform_can_ask_for_its_health(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"ok": True, "findings": []}
    # If the machine is busy, the first answers may be that the database takes too long.
    while client.get("/health/ready").status_code != 200:
        time.sleep(0.1)


# ---- live, with a real server and a real client

# A session that waits for notifications holds this lock.
LISTENS = text(
    "SELECT count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1297302595 AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@pytest.fixture
def url(client: TestClient, engine: Engine) -> Iterator[str]:
    """The application's address, on a free port."""
    install.upgrade(engine, notify=True)
    server = uvicorn.Server(
        uvicorn.Config(create_app(engine), port=0, log_level="warning", timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join()


@contextmanager
def events(url: str, last_event_id: int | None = None) -> Iterator[Iterator[tuple[int, dict[str, Any]]]]:
    """The events with their ids, as a browser gets them."""
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    with httpx2.stream("GET", url, headers=headers, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        yield _parsed(response.iter_lines())


def _parsed(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line in lines:
        if line.startswith("id: "):
            yield int(line[4:]), json.loads(next(lines).removeprefix("data: "))


def test_a_browser_sees_an_order_live_and_continues_after_the_last_event(url: str, engine: Engine) -> None:
    id = httpx2.post(f"{url}/orders", json={"item": "lamp", "quantity": 2}).json()["id"]
    with events(f"{url}/orders/{id}/live") as live:
        assert next(live) == (0, {"type": "Placed", "item": "lamp", "quantity": 2})
        httpx2.post(f"{url}/orders/{id}/cancel", json={"reason": "too late", "version": 0})
        assert next(live) == (1, {"type": "Cancelled", "reason": "too late"})
    Store(engine).write(f"order-{id}", "Refunded", {})
    with events(f"{url}/orders/{id}/live", last_event_id=1) as live:
        assert next(live) == (2, {"type": "Refunded"})


@pytest.mark.parametrize("last_event_id", ["-5", str(2**63)])
def test_an_event_that_cannot_exist_is_refused_before_the_stream_begins(client: TestClient, last_event_id: str) -> None:
    response = client.get(f"/orders/{uuid4()}/live", headers={"Last-Event-ID": last_event_id})
    assert response.status_code == 422


def test_browsers_share_a_connection_that_is_closed_when_the_last_one_leaves(url: str, engine: Engine) -> None:
    def listening() -> Any:
        with engine.connect() as connection:
            return connection.scalar(LISTENS)

    def wait_until_listening(number: int) -> None:
        last = time.monotonic() + 60
        while listening() != number:
            assert time.monotonic() < last
            time.sleep(0.01)

    id = httpx2.post(f"{url}/orders", json={"item": "lamp", "quantity": 2}).json()["id"]
    with events(f"{url}/orders/{id}/live") as first, events(f"{url}/orders/{id}/live") as second:
        assert next(first) == next(second)
        wait_until_listening(1)
    wait_until_listening(0)
