"""Requests over real sockets, byte by byte where that matters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from polarcredits.webhooks.signature import sign
from tests.webhooks.recordings import FILES, SECRET, recorded

Pairs = Sequence[tuple[str, str]]
PATH = "/webhooks/polar"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Sending:
    """A delivery to send: it is signed anew each time, as Polar does."""

    id: str
    raw: bytes
    secret: str = SECRET

    def headers(self, at: datetime | None = None) -> dict[str, str]:
        """Return the headers as of now, or of another time."""
        signed = sign(self.raw, id=self.id, secret=self.secret, at=at or datetime.now(UTC))
        return {"content-type": "application/json", "user-agent": "polar.sh webhooks", **signed}


def recordings() -> list[Sending]:
    """Return every recorded delivery."""
    return [Sending(id=each.headers["webhook-id"], raw=each.raw) for file in FILES for each in recorded(file)]


def told(id: str, payload: Mapping[str, Any]) -> Sending:
    """Return a delivery of *payload*."""
    return Sending(id=id, raw=json.dumps(payload).encode())


def request(
    raw: bytes,
    headers: Pairs | Mapping[str, str],
    *,
    path: str = PATH,
    method: str = "POST",
    length: bool = True,
) -> bytes:
    """Return a whole request as bytes."""
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    if length:
        pairs.append(("content-length", str(len(raw))))
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", *(f"{key}: {value}" for key, value in pairs)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + raw


def chunked(raw: bytes, size: int = 1000) -> bytes:
    """Return a body in chunks."""
    parts = [raw[at : at + size] for at in range(0, len(raw), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


async def answer(reader: asyncio.StreamReader) -> Answer:
    """Read one answer. Raises IncompleteReadError or OSError where there is none."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(status=int(head[0].split()[1]), headers=headers, body=body)


async def exchange(port: int, data: bytes, *, timeout: float = 15) -> Answer:
    """Send bytes on a connection of its own and return the answer."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(data)
            return await answer(reader)
        finally:
            writer.close()


def post(port: int, sending: Sending, **changed: str) -> Answer:
    """Send one delivery, some of its headers changed (`_` for `-`)."""
    headers = sending.headers() | {key.replace("_", "-"): value for key, value in changed.items()}
    return asyncio.run(exchange(port, request(sending.raw, headers)))


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What became of one request of a flood: None where the connection broke."""

    sending: Sending
    answer: Answer | None


async def flood(
    port: int,
    sendings: Iterable[Sending],
    *,
    connections: int = 64,
    seen: Callable[[Sent], None] = lambda sent: None,
) -> list[Sent]:
    """Send deliveries over that many connections at once; broken ones are made again."""
    waiting = iter(list(sendings))
    done: list[Sent] = []

    async def one() -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for sending in waiting:
            got = None
            try:
                async with asyncio.timeout(20):
                    if streams is None:
                        streams = await asyncio.open_connection("127.0.0.1", port)
                    streams[1].write(request(sending.raw, sending.headers()))
                    got = await answer(streams[0])
            except (OSError, asyncio.IncompleteReadError):
                if streams is not None:
                    streams[1].close()
                streams = None
                await asyncio.sleep(0.02)
            sent = Sent(sending=sending, answer=got)
            done.append(sent)
            seen(sent)
        if streams is not None:
            streams[1].close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return done
