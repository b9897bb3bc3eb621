"""`/healthz`: the process lives. `/readyz`: it can take deliveries. `/metrics`: how it has been."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polarcredits.errors import ConfigError, DatabaseBusy, DatabaseError
from polarcredits.ledger.health import waiting
from polarcredits.ledger.ingest import check_stamp
from polarcredits.ledger.schema import check
from polarcredits.server.context import ServerContext
from polarcredits.server.log import JsonLog
from polarcredits.server.metrics import Metrics
from polarcredits.server.webhooks import Receiver

T = TypeVar("T")
ANSWER_SECONDS = 2.0
"""How long a question to the database may take before the answer is no."""


class Shared(Generic[T]):
    """One question to the database at a time, whoever asks: a database that hangs costs one thread."""

    def __init__(self, context: ServerContext, work: Callable[[], T]) -> None:
        self._context = context
        self._work = work
        self._running: asyncio.Task[T] | None = None

    async def ask(self) -> T:
        """Return the answer. Raises what *work* raises, or DatabaseBusy if it takes too long."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._context.with_checks(self._work))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asyncio.shield(self._running)
        except TimeoutError:
            raise DatabaseBusy("The database does not answer in time.") from None


class Health:
    """Answers those who watch over the server."""

    def __init__(self, context: ServerContext, receiver: Receiver, *, log: JsonLog, metrics: Metrics) -> None:
        self._context = context
        self._receiver = receiver
        self._log = log
        self._metrics = metrics
        self._ready = Shared(context, self._check)
        self._work = Shared(context, lambda: waiting(context.ledger))

    async def healthz(self, request: Request) -> Response:
        """Say that the event loop turns."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Say whether the database is there, up to date, of the right environment, and takes deliveries."""
        try:
            await self._ready.ask()
            if self._receiver.stuck:
                raise DatabaseError("The database does not take deliveries.")
        except (DatabaseError, ConfigError) as error:
            self._log.write("not_ready", level="warning", code=error.code, message=error.message)
            return JSONResponse({"status": "not_ready", "code": error.code}, 503)
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Return Prometheus's text; without a database what is known all the same."""
        self.sample()
        found = None
        with suppress(DatabaseError):
            found = await self._work.ask()
        text = self._metrics.text(found, self._context.now())
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    def sample(self) -> None:
        """Take over what others count, for a scrape that may come to another worker."""
        self._metrics.sample(self._context.ledger.database.connections(), self._log.dropped)

    def _check(self) -> None:
        self._context.ledger.reading(check)
        self._context.ledger.reading(
            lambda connection: check_stamp(connection, self._context.settings.environment)
        )
