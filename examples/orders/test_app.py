"""The application's tests: a real PostgreSQL, migrated as in production, for each run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import Session

from messagedb_sa import Store
from messagedb_sa.postgres import temporary_database
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


def test_an_order_can_be_cancelled_by_who_saw_its_latest_version(client: TestClient) -> None:
    id = client.post("/orders", json={"item": "lamp", "quantity": 2}).json()["id"]
    assert client.post(f"/orders/{id}/cancel", json={"reason": "too late", "version": 0}).json()["version"] == 1
    assert client.get(f"/orders/{id}/history").json() == [
        {"version": 0, "type": "Placed", "item": "lamp", "quantity": 2},
        {"version": 1, "type": "Cancelled", "reason": "too late"},
    ]


def test_who_comes_second_is_told_and_changes_nothing(client: TestClient, engine: Engine) -> None:
    id = client.post("/orders", json={"item": "lamp", "quantity": 2}).json()["id"]
    Store(engine).write(f"order-{id}", "Shipped", {})
    answer = client.post(f"/orders/{id}/cancel", json={"reason": "too late", "version": 0})
    assert answer.status_code == 409
    assert answer.json() == {"detail": "the order is at version 1"}
    with Session(engine) as session:
        assert session.scalars(select(Order.status)).one() == "placed"


def test_an_order_that_is_refused_leaves_neither_row_nor_message(client: TestClient, engine: Engine) -> None:
    answer = client.post("/orders", json={"item": "lamp\0", "quantity": 2})
    assert answer.status_code == 422
    assert "NUL" in answer.json()["detail"]
    assert Store(engine).read_category("order") == []
    with Session(engine) as session:
        assert session.scalars(select(Order)).all() == []
