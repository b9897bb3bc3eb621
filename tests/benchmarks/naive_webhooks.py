"""What a good developer writes first: FastAPI, the SDK's validate_event, SQLModel's ORM.

    DATABASE=FILE SECRET=… python -m tests.benchmarks.naive_webhooks

prints its port and serves. As durable as ours (WAL, synchronous=FULL), one transaction a delivery.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from polar.v2026_10.webhooks import PolarWebhookVerificationError, validate_event
from sqlalchemy import event
from sqlmodel import Field, Session, SQLModel, create_engine, select


class Received(SQLModel, table=True):
    """A delivery that was taken."""

    id: str = Field(primary_key=True)
    type: str
    body: bytes


class Credits(SQLModel, table=True):
    """What a user has."""

    user: str = Field(primary_key=True)
    balance: int


class Entry(SQLModel, table=True):
    """A line of the ledger."""

    id: int | None = Field(default=None, primary_key=True)
    user: str = Field(index=True)
    amount: int
    order_id: str = Field(unique=True)


engine = create_engine(f"sqlite:///{os.environ['DATABASE']}", connect_args={"timeout": 30})
app = FastAPI()


@event.listens_for(engine, "connect")
def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


async def _body(request: Request) -> bytes:
    return await request.body()


@app.post("/webhooks/polar", status_code=202)
def receive(request: Request, body: Annotated[bytes, Depends(_body)]) -> dict[str, str]:
    """Take a delivery; FastAPI runs this in a thread."""
    try:
        told: Any = validate_event(body, dict(request.headers), os.environ["SECRET"])
    except PolarWebhookVerificationError as error:
        raise HTTPException(403) from error
    with Session(engine) as session:
        id = request.headers["webhook-id"]
        if session.get(Received, id) is not None:
            return {"status": "duplicate"}
        session.add(Received(id=id, type=told.type, body=body))
        if told.type == "order.paid":
            user = told.data.customer.external_id
            known = session.exec(select(Entry).where(Entry.order_id == told.data.id)).first()
            if known is None:
                credits = session.get(Credits, user) or Credits(user=user, balance=0)
                credits.balance += 5000
                session.add(credits)
                session.add(Entry(user=user, amount=5000, order_id=told.data.id))
        session.commit()
    return {"status": "applied"}


def main() -> None:
    """Serve until killed."""
    SQLModel.metadata.create_all(engine)
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listening.getsockname()[1], flush=True)
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="error"))
    server.run(sockets=[listening])


if __name__ == "__main__":
    main()
