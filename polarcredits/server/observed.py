"""Around every request: its id, its line in the log, its place in the metrics."""

from __future__ import annotations

import re
import time
from urllib.parse import unquote

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polarcredits.server.log import JsonLog
from polarcredits.server.metrics import Metrics
from polarcredits.server.protocol import HEAD_BYTES, take_request_id

ROUTES = ("/webhooks/polar", "/healthz", "/readyz", "/metrics", "/pricing", "/checkout", "/checkout/success")
_SCHEME_AND_HOST = re.compile(rb"https?://[^/]*", re.IGNORECASE)
_LONGEST_SEGMENT = 20
_LONGEST_PATH = 100
_TOO_LONG = PlainTextResponse("The head of the request is too long.", 431, {"connection": "close"})


class Observed:
    """The application, observed. Nothing that is secret reaches the log or a label.

    Queries, headers and bodies are never looked at; a path is written only as far as it holds no token.
    """

    def __init__(self, app: ASGIApp, *, log: JsonLog, metrics: Metrics) -> None:
        self._app = app
        self._log = log
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; whatever becomes of it is noted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        _take_origin_form(scope)
        state = scope.setdefault("state", {})
        request_id = take_request_id(state, scope["headers"])
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await (self._app if _fits(scope) else _TOO_LONG)(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - began
            route = route_of(scope["path"])
            self._metrics.seconds.labels(route).observe(seconds)
            self._metrics.requests.labels(route, str(status)).inc()
            self._log.write(
                "request",
                method=scope["method"][:10],
                path=shown_path(scope["path"]),
                status=status,
                ms=round(seconds * 1000, 1),
                client=(scope.get("client") or ("",))[0][:64],
                request_id=request_id,
                **state.get("told", {}),
            )

    def note_unreadable(self, *, client: str, request_id: str) -> None:
        """Note a 400 for bytes that never became a request."""
        self._metrics.requests.labels("other", "400").inc()
        self._log.write(
            "request", status=400, client=client[:64], request_id=request_id, outcome="unreadable"
        )


def _take_origin_form(scope: Scope) -> None:
    """Understand a target with scheme and host, as servers must (RFC 9112, §3.2.2)."""
    absolute = _SCHEME_AND_HOST.match(scope["raw_path"])
    if absolute is not None:
        scope["raw_path"] = scope["raw_path"][absolute.end() :] or b"/"
        scope["path"] = unquote(scope["raw_path"].decode("ascii"))


def _fits(scope: Scope) -> bool:
    """Say whether a head is within its bound; h11 counts only what comes in pieces."""
    target = len(scope["raw_path"]) + len(scope["query_string"])
    return target + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) <= HEAD_BYTES


def route_of(path: str) -> str:
    """Return the route that *path* is, for a label: one of few."""
    if path in ROUTES:
        return path
    return "/billing/{token}" if path.startswith("/billing/") else "other"


def shown_path(path: str) -> str:
    """Return *path* for the log, without what may be a token."""
    if path.startswith("/billing/"):
        return "/billing/…"
    parts = ("…" if len(part) > _LONGEST_SEGMENT else part for part in path.split("/"))
    return "/".join(parts)[:_LONGEST_PATH]
