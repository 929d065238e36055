"""Orders are rows of this application; what happens to them are messages, written in the same transaction."""

from __future__ import annotations

import os
from typing import Any
from uuid import UUID, uuid4

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, PositiveInt
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from messagedb_sa import NO_STREAM, InvalidArgument, Store, WrongExpectedVersion


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
    app = FastAPI(title="Orders")

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
        """Whoever cancels says which version of the order they saw; somebody may have been faster."""
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
                # Leaving the block with an exception rolls back the row with it.
                raise HTTPException(409, f"the order is at version {error.actual_version}") from error
            return {"id": order_id, "version": version}

    @app.get("/orders/{order_id}/history")
    def history(order_id: UUID) -> list[dict[str, Any]]:
        messages = Store(engine).read_stream(f"order-{order_id}")
        return [{"version": message.position, "type": message.type, **message.data} for message in messages]

    return app
