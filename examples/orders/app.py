"""The application. An order is a row in its table, and each change is a message, written in the same transaction."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, PositiveInt
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from messagedb_sa import NO_STREAM, AsyncStore, AsyncSubscription, InvalidArgument, Store, WrongExpectedVersion, health


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    item: Mapped[str]
    quantity: Mapped[int]
    status: Mapped[str]


class NewOrder(BaseModel):
    item: str
    quantity: PositiveInt


class Cancellation(BaseModel):
    reason: str
    version: int


def create_app(engine: Engine | None = None) -> FastAPI:
    engine = engine or create_engine(os.environ["DATABASE_URL"])
    # Asynchronous, since a browser that waits must not occupy a thread.
    live_store = AsyncStore(create_async_engine(engine.url.set(drivername="postgresql+psycopg")))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await live_store.engine.dispose()

    app = FastAPI(title="Orders", lifespan=lifespan)

    # For the probes of a platform: /health/live and /health/ready.
    app.mount("/health", health.endpoint(store=Store(engine)))

    @app.exception_handler(InvalidArgument)
    def refuse(request: Request, error: InvalidArgument) -> JSONResponse:
        return JSONResponse({"detail": error.reason}, status_code=422)

    @app.post("/orders", status_code=201)
    def place(new: NewOrder) -> dict[str, Any]:
        with Session(engine) as session, session.begin():
            order = Order(id=uuid4(), item=new.item, quantity=new.quantity, status="placed")
            session.add(order)
            version = Store(session).write(f"order-{order.id}", "Placed", new.model_dump(), expected_version=NO_STREAM)
            return {"id": order.id, "version": version}

    @app.post("/orders/{order_id}/cancel")
    def cancel(order_id: UUID, cancellation: Cancellation) -> dict[str, Any]:
        """The client sends the version of the order that it saw. If the order has changed since, the answer is 409."""
        with Session(engine) as session, session.begin():
            order = session.get(Order, order_id)
            if order is None:
                raise HTTPException(404, f"there is no order {order_id}")
            order.status = "cancelled"
            try:
                version = Store(session).write(
                    f"order-{order_id}",
                    "Cancelled",
                    {"reason": cancellation.reason},
                    expected_version=cancellation.version,
                )
            except WrongExpectedVersion as error:
                # The exception leaves the block of session.begin(), so the change of the row is rolled back.
                raise HTTPException(409, f"the order is at version {error.actual_version}") from error
            return {"id": order_id, "version": version}

    @app.get("/orders/{order_id}/history")
    def history(order_id: UUID) -> list[dict[str, Any]]:
        messages = Store(engine).iter_stream(f"order-{order_id}")
        return [{"version": message.position, "type": message.type, **message.data} for message in messages]

    @app.get("/orders/{order_id}/live")
    def live(order_id: UUID, last_event_id: Annotated[int, Header()] = -1) -> StreamingResponse:
        """Server-sent events: the history, and then what happens. A browser continues after the last event it got."""

        messages = AsyncSubscription(live_store, f"order-{order_id}", last_event_id + 1, reconnect=True)

        async def events() -> AsyncIterator[str]:
            async with messages:
                async for message in messages:
                    event = json.dumps({"type": message.type, **message.data})
                    yield f"id: {message.position}\ndata: {event}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app
