"""Reading bodies with a limit in bytes and in time, and refusing what is more without reading it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

BODY_LIMIT = 1024 * 1024
"""The largest body that is read, in bytes."""
BODY_SECONDS = 10.0
"""How long a body may take to arrive: as long as Polar itself waits for an answer."""
_SMALL = 64 * 1024
_MOST_LARGE = 32
_DRAIN_BYTES = 256 * 1024
_DRAIN_SECONDS = 1.0


class BodyTooLarge(Exception):
    """The body is larger than BODY_LIMIT, or says so."""


class BodyTooSlow(Exception):
    """The body did not arrive within BODY_SECONDS."""


class TooManyLarge(Exception):
    """So many large bodies are being read that memory for another is not given."""


class Bodies:
    """Reads request bodies; a worker holds no more than a few large ones at a time."""

    def __init__(self, *, seconds: float = BODY_SECONDS) -> None:
        self._seconds = seconds
        self._large = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Give the body, which counts until the end of the block.

        Raises BodyTooLarge, BodyTooSlow, TooManyLarge; starlette's ClientDisconnect.
        """
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > BODY_LIMIT:
            raise BodyTooLarge
        body, large = bytearray(), False
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    async for chunk in request.stream():
                        if len(body) + len(chunk) > BODY_LIMIT:
                            raise BodyTooLarge
                        body += chunk
                        if len(body) > _SMALL and not large:
                            self._take_large()
                            large = True
            except TimeoutError:
                raise BodyTooSlow from None
            yield bytes(body)
        finally:
            self._large -= large

    def _take_large(self) -> None:
        if self._large >= _MOST_LARGE:
            raise TooManyLarge
        self._large += 1


class ClosingResponse(JSONResponse):
    """An answer to a request whose body was not read to its end: the connection is closed after it.

    Closing at once would reset the connection under a client that still sends, which would then never
    see the answer; so a little of what it sends is thrown away first.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole answer, let the client notice, and end."""
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        thrown = 0
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while thrown < _DRAIN_BYTES:
                    message = await receive()
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        break
                    thrown += len(message.get("body", b""))
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})
