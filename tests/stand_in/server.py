"""A loopback server that stands in for Polar: honest, held to polar-sdk's types, rude on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.stand_in.documents import input_problem, problem
from tests.stand_in.routes import Refused, Route, route_of
from tests.stand_in.site import Shown, show
from tests.stand_in.state import State

TOKEN = "polar_oat_stand_in_0123456789"


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request and what was answered."""

    method: str
    target: str
    request_headers: dict[str, str]
    request_body: bytes
    status: int
    response_body: bytes


@dataclass(kw_only=True)
class Misbehaviour:
    """How the next so many requests that fit are treated."""

    kind: str
    times: int
    path: str
    method: str | None
    after: bool
    detail: dict[str, Any] = field(default_factory=dict)


class PolarStandIn:
    """Polar's API on loopback. `faults` are requests and answers that polar-sdk's types refuse."""

    def __init__(self, *, now: datetime | None = None) -> None:
        self.state = State(now)
        organization = {"id": self.state.organization_id, "name": "Stand-in", "embed_hosts_enforced": False}
        self.state.put("organization", organization)
        self.exchanges: list[Exchange] = []
        self.faults: list[str] = []
        self.lock = threading.RLock()
        self.stopping = threading.Event()
        self.scopes_lacking: set[str] = set()
        """Beginnings of paths that the token may not use, with their method: `POST /v1/checkouts/`."""
        self.on_request: Callable[[str], object] = lambda target: None
        """Called with the address of every request, before it is looked at."""
        self.delay = 0.0
        """Seconds that each answer takes, after the clock was looked at."""
        self.dated = True
        """Whether answers have a Date header."""
        self._misbehaviours: list[Misbehaviour] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> PolarStandIn:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        assert error is not None or not self.faults, self.faults

    def misbehave(
        self, kind: str, *, times: int = 1, path: str = "", method: str | None = None, after: bool = False,
        **detail: Any,
    ) -> None:  # fmt: skip
        """Treat the next *times* fitting requests badly; with *after*, once they have had their effect."""
        self._misbehaviours.append(
            Misbehaviour(kind=kind, times=times, path=path, method=method, after=after, detail=detail)
        )

    def next_misbehaviour(self, method: str, path: str) -> Misbehaviour | None:
        """Take the misbehaviour that is meant for a request."""
        with self.lock:
            for each in self._misbehaviours:
                if each.times and each.path in path and each.method in (None, method):
                    each.times -= 1
                    return each
        return None

    def behave(self) -> None:
        """Be honest again."""
        with self.lock:
            self._misbehaviours.clear()

    def count(self, kind: str) -> int:
        """Return how many objects of a kind there are."""
        return len(self.state.all(kind))


def _handler(polar: PolarStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_PATCH(self) -> None:
            self._serve()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(polar.state.now(), usegmt=True)

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            with polar.lock:
                shown = show(polar.state, self.command, urlsplit(self.path).path)
            if shown is not None:
                self._show(shown)
                return
            polar.on_request(self.path)
            rude = polar.next_misbehaviour(self.command, self.path)
            with polar.lock:
                honest = rude is None or rude.after or rude.kind in _TWISTS
                status, document = _respond(polar, self, body) if honest else (500, None)
            raw = json.dumps(document).encode()
            if rude is not None:
                status, raw = self._misbehaved(rude, status, document)
            polar.exchanges.append(
                Exchange(
                    method=self.command,
                    target=self.path,
                    request_headers={k.lower(): v for k, v in self.headers.items()},
                    request_body=body,
                    status=status,
                    response_body=raw,
                )
            )
            if status:
                self._send(status, raw, rude)
            else:
                self._break_off(rude.kind if rude else "")

        def _show(self, shown: Shown) -> None:
            raw = shown.html.encode()
            self.send_response(shown.status)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.send_header("content-length", str(len(raw)))
            if shown.location is not None:
                self.send_header("location", shown.location)
            self.end_headers()
            self.wfile.write(raw)

        def _misbehaved(self, rude: Misbehaviour, status: int, document: Any) -> tuple[int, bytes]:
            """Return the rude answer; status 0 where there is none."""
            if rude.kind in ("timeout", "cut"):
                return 0, b""
            if rude.kind in _TWISTS:
                return status, json.dumps(_TWISTS[rude.kind](document)).encode()
            fixed: dict[str, tuple[int, bytes]] = {
                "429": (429, b""),
                "500": (500, b'{"error": "boom", "detail": "token ' + TOKEN.encode() + b'"}'),
                "502": (502, b"<html><title>Bad gateway</title></html>"),
                "504": (504, b"gateway timeout"),
                "html": (200, b"<html>maintenance</html>"),
                "garbage": (200, b'{"items": ['),
                "null": (200, b"null"),
                "list": (200, b"[]"),
                "empty": (200, b"{}"),
                "redirect": (307, b""),
                "403": (403, b'{"error": "insufficient_scope", "detail": "Missing scope"}'),
            }
            return fixed[rude.kind]

        def _break_off(self, kind: str) -> None:
            """Never answer, or stop in the middle."""
            if kind == "timeout":
                polar.stopping.wait(30)
            else:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            self.close_connection = True

        def _send(self, status: int, raw: bytes, rude: Misbehaviour | None) -> None:
            if polar.dated:
                self.send_response(status)
            else:
                self.send_response_only(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            if rude is not None and "retry_after" in rude.detail:
                self.send_header("retry-after", str(rude.detail["retry_after"]))
            if status == 307:
                self.send_header("location", "https://elsewhere.example/")
            self.end_headers()
            polar.stopping.wait(polar.delay)
            self.wfile.write(raw)

    return Handler


def _respond(polar: PolarStandIn, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, Any]:
    """Answer as Polar would, and note what polar-sdk's types would refuse."""
    parts = urlsplit(request.path)
    where = f"{request.command} {request.path}"
    if request.headers.get("authorization") != f"Bearer {TOKEN}":
        return 401, {"error": "invalid_token", "detail": "The access token is invalid."}
    if any(where.startswith(each) for each in polar.scopes_lacking):
        return 403, {"error": "insufficient_scope", "detail": "The token lacks a scope."}
    if request.headers.get("polar-version") != "2026-10":
        polar.faults.append(f"{where}: no Polar-Version")
    found = route_of(request.command, [unquote(part) for part in parts.path[1:].split("/")])
    if found is None:
        polar.faults.append(f"{where}: there is no such route")
        return 404, {"error": "ResourceNotFound", "detail": "Not found"}
    route, ids = found
    query = parse_qs(parts.query, keep_blank_values=True)
    wrong = _wrong(route, query, body)
    if wrong is not None:
        polar.faults.append(f"{where}: {wrong}")
        return 422, {"error": "RequestValidationError", "detail": [{"loc": [], "msg": wrong, "type": "x"}]}
    try:
        document = route.work(polar.state, ids, query, json.loads(body) if body else {})
    except Refused as refusal:
        return 422, {"error": "RequestValidationError", "detail": refusal.detail}
    if document is None:
        return 404, {"error": "ResourceNotFound", "detail": "Not found"}
    unreadable = problem(document, route.answers)
    if unreadable is not None:
        polar.faults.append(f"{where}: the answer is none of polar-sdk's: {unreadable}")
    return route.status, document


def _wrong(route: Route, query: dict[str, list[str]], body: bytes) -> str | None:
    unknown = {name.partition("[")[0] for name in query} - route.parameters()
    if unknown:
        return f"unknown parameters {sorted(unknown)}"
    if not 1 <= int(query.get("limit", ["10"])[0]) <= 100:
        return "limit is not from 1 to 100"
    if route.takes:
        return input_problem(json.loads(body or b"null"), *route.takes)
    return "there is a body" if body else None


def _unknown_values(document: Any) -> Any:
    """Replace every status and reason by a word that nobody knows."""
    if isinstance(document, dict):
        words = ("status", "billing_reason", "type", "recurring_interval")
        return {k: "brand_new" if k in words and v else _unknown_values(v) for k, v in document.items()}
    return [_unknown_values(each) for each in document] if isinstance(document, list) else document


def _missing_fields(document: Any) -> Any:
    """Leave out what Polar may some day no longer send."""
    if isinstance(document, dict):
        dropped = ("modified_at", "metadata", "discount", "discount_id", "prices", "platform_fee_amount")
        return {k: _missing_fields(v) for k, v in document.items() if k not in dropped}
    return [_missing_fields(each) for each in document] if isinstance(document, list) else document


def _extra_fields(document: Any) -> Any:
    if isinstance(document, dict):
        return {"brand_new_field": {"a": [1]}} | {k: _extra_fields(v) for k, v in document.items()}
    return [_extra_fields(each) for each in document] if isinstance(document, list) else document


_TWISTS = {
    "unknown-values": _unknown_values,
    "missing-fields": _missing_fields,
    "extra-fields": _extra_fields,
}
