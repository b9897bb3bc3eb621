"""The application: every route of the server, and what runs beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from polarcredits.server.context import ServerContext
from polarcredits.server.healing import Healing
from polarcredits.server.health import Health
from polarcredits.server.log import JsonLog, places
from polarcredits.server.metrics import Metrics
from polarcredits.server.observed import Observed
from polarcredits.server.pages import page_routes
from polarcredits.server.protocol import Unreadable
from polarcredits.server.webhooks import Receiver

_SAMPLE_SECONDS = 5.0


async def kept_up(
    work: Callable[[], Coroutine[None, None, None]], *, log: JsonLog, pause: float = _SAMPLE_SECONDS
) -> None:
    """Run *work*, and again some seconds after it failed, until cancelled; each failure is logged."""
    while True:
        running = asyncio.create_task(work())
        try:
            await asyncio.wait([running])
        finally:
            running.cancel()
            await asyncio.wait([running])
        error = None if running.cancelled() else running.exception()
        if error is not None:
            log.write("beside_failed", level="error", error=type(error).__name__, at=places(error))
        await asyncio.sleep(pause)


def make_app(context: ServerContext, *, log: JsonLog, metrics: Metrics) -> ASGIApp:
    """Return the application of one worker; it owns neither the ledger nor the log."""
    receiver = Receiver(context, log=log, metrics=metrics)
    health = Health(context, receiver, log=log, metrics=metrics)
    healing = Healing(context, log=log, metrics=metrics)

    async def sample() -> None:
        while True:
            health.sample()
            await asyncio.sleep(_SAMPLE_SECONDS)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Unreadable]]:
        beside = [asyncio.create_task(kept_up(work, log=log)) for work in (healing.run, sample)]
        try:
            yield {"unreadable": observed.note_unreadable}
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await receiver.close()

    app = Starlette(
        routes=[
            Route("/webhooks/polar", receiver.receive, methods=["POST"]),
            Route("/healthz", health.healthz),
            Route("/readyz", health.readyz),
            Route("/metrics", health.metrics),
            *page_routes(context),
        ],
        lifespan=lifespan,
        exception_handlers={404: _told, 405: _told},
    )
    app.router.redirect_slashes = False
    observed = Observed(app, log=log, metrics=metrics)
    return observed


async def _told(request: Request, error: Exception) -> Response:
    """Answer what has no route, or none of that method."""
    status = getattr(error, "status_code", 404)
    code, message = ("no_such_path", "There is nothing here.")
    if status == 405:
        code, message = ("no_such_method", "This path does not take that method.")
    headers = getattr(error, "headers", None)
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)
