"""HTTP/1.1 as uvicorn speaks it over h11, with the limits that it lacks.

h11 rather than httptools: it refuses what is ambiguous and bounds heads, trailers and chunk headers;
what it costs is a tenth of a delivery. A connection that sends no whole head in time, or does
not read its answer, is closed, and there are only so many connections. What is not HTTP is answered
with a request id, too.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterable
from typing import Any, Protocol

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

HEAD_BYTES = 16 * 1024
HEAD_SECONDS = 10.0
READ_SECONDS = 15.0
"""How long a client may leave an answer unread."""
KEEP_ALIVE_SECONDS = 75
"""Longer than proxies keep idle connections (nginx 60 s), so that it is they who close them."""
MOST_CONNECTIONS = 4000
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")


class Unreadable(Protocol):
    """What is told of a 400 for bytes that never became a request."""

    def __call__(self, *, client: str, request_id: str) -> None:
        """Note it."""


class BoundedProtocol(H11Protocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a head, unless there are too many connections."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("HTTP needs a stream")
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes; once a request has begun, reading it is the application's business."""
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, under the id that the log has; where an answer has begun, hang up.

        A request whose body breaks off so is the application's to note; anything else is noted here.
        """
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            request_id = take_request_id(self.scope["state"], self.headers)
        else:
            request_id = take_request_id({}, ())
            note: Unreadable = self.app_state["unreadable"]
            note(client=self.client[0] if self.client else "", request_id=request_id)
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(msg)).encode()),
            (b"connection", b"close"),
            (b"x-request-id", request_id.encode()),
        ]
        for event in (
            h11.Response(status_code=400, reason=b"Bad Request", headers=headers),
            h11.Data(data=msg.encode()),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """Wait for a client that does not read its answer, but not for ever."""
        super().pause_writing()
        self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: it reads."""
        super().resume_writing()
        self._forget_unread()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        super().connection_lost(exc)
        self._disarm()
        self._forget_unread()

    def _watch(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if not idle:
            self._disarm()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def take_request_id(state: dict[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id in a request's *state*; at first it is the caller's, if that can do no harm, else new."""
    if "request_id" not in state:
        given = [value for name, value in headers if name == b"x-request-id"]
        good = len(given) == 1 and _REQUEST_ID.fullmatch(given[0])
        state["request_id"] = given[0].decode() if good else uuid.uuid4().hex
    request_id: str = state["request_id"]
    return request_id
