"""Slow, many and silent clients: bounded in time and memory, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.server.conftest import sqlite
from tests.server.serving import Serving, serving
from tests.server.wire import PATH, Answer, Sending, answer, exchange, flood, recordings, request, told

GOOD = recordings()[0]
GET = f"GET {PATH.replace('/webhooks/polar', '/healthz')} HTTP/1.1\r\nhost: x\r\n\r\n".encode()


async def drip(port: int, data: bytes, *, at_once: int, pause: float) -> tuple[Answer | None, float]:
    """Send some bytes at once and the rest one by one; return what was answered, and when it ended."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = None

    async def write() -> None:
        writer.write(data[:at_once])
        for index in range(at_once, len(data)):
            await asyncio.sleep(pause)
            writer.write(data[index : index + 1])
            await writer.drain()

    writing = asyncio.create_task(write())
    with suppress(OSError, asyncio.IncompleteReadError):
        async with asyncio.timeout(25):
            got = await answer(reader)
            while await reader.read(1000):
                pass
    ended = time.monotonic() - began
    writing.cancel()
    with suppress(OSError, asyncio.CancelledError):
        await writing
    writer.close()
    return got, ended


def test_slow_senders(server: Serving) -> None:
    """Who sends nothing, half a head or half a body is let go in about ten seconds; others are served."""
    whole = request(GOOD.raw, GOOD.headers())
    head = len(whole) - len(GOOD.raw)
    chunks = request(b"", GOOD.headers() | {"transfer-encoding": "chunked"}, length=False)

    async def trial() -> tuple[list[tuple[Answer | None, float]], list[int]]:
        slow = asyncio.gather(
            drip(server.port, whole, at_once=0, pause=1000),
            drip(server.port, whole, at_once=40, pause=0.2),
            drip(server.port, whole, at_once=head, pause=1000),
            drip(server.port, whole, at_once=head + 100, pause=0.2),
            drip(server.port, chunks + b"5\r\nhello\r\n" * 1000, at_once=len(chunks), pause=0.2),
            drip(server.port, GET + b"x" * 1000, at_once=len(GET), pause=0.2),
        )
        served: list[Answer] = []
        while not slow.done():
            sending = Sending(id=f"meanwhile-{len(served)}", raw=GOOD.raw)
            served.append(await exchange(server.port, request(sending.raw, sending.headers())))
            await asyncio.sleep(0.5)
        return list(await slow), [each.status for each in served]

    slow, served = asyncio.run(trial())
    assert [got and got.status for got, _ in slow] == [None, None, 408, 408, 408, 200]
    assert all(seconds < 15 for _, seconds in slow), slow
    assert served
    assert set(served) == {202}


def test_clients_that_do_not_read(server: Serving) -> None:
    """Whoever asks and asks without reading an answer is let go, and holds nothing meanwhile."""

    async def trial() -> float:
        began = time.monotonic()
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        with suppress(ConnectionError):
            async with asyncio.timeout(40):
                while True:
                    writer.write(b"GET /pricing HTTP/1.1\r\nhost: x\r\n\r\n" * 200)
                    await writer.drain()
        writer.close()
        return time.monotonic() - began

    assert asyncio.run(trial()) < 35
    assert server.get("/healthz")[0] == 200


def test_a_head_that_is_too_long(server: Serving) -> None:
    """16 KiB, whether they come at once or in pieces; a little less is taken."""
    whole = request(GOOD.raw, GOOD.headers() | {"x-padding": "x" * 17_000})

    async def pieces() -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for piece in (whole[:9000], whole[9000:17_000]):
            writer.write(piece)
            await asyncio.sleep(0.1)
        got = await answer(reader)
        writer.close()
        return got

    at_once = asyncio.run(exchange(server.port, whole))
    assert (at_once.status, at_once.headers["connection"]) == (431, "close")
    assert at_once.headers["x-request-id"]
    assert asyncio.run(pieces()).status in (400, 431)
    fits = request(GOOD.raw, GOOD.headers() | {"x-padding": "x" * 15_000})
    assert asyncio.run(exchange(server.port, fits)).status == 202


def test_a_target_with_scheme_and_host(server: Serving) -> None:
    """What some proxies send names the same path, in the log as well; a second one in it does not."""
    targets = {
        "http://credits.example/webhooks/polar": 202,
        "HTTPS://credits.example:443/webhooks/polar?from=http://elsewhere/": 202,
        "http://credits.example/webhooks%2Fpolar": 202,
        "http://credits.example": 404,
        "http://credits.example/http://credits.example/webhooks/polar": 404,
        "//credits.example/webhooks/polar": 404,
        "ftp://credits.example/webhooks/polar": 404,
    }
    ids = []
    for target, status in targets.items():
        got = asyncio.run(exchange(server.port, request(GOOD.raw, GOOD.headers(), path=target)))
        assert (target, got.status) == (target, status)
        ids.append(got.headers["x-request-id"])
    lines = [logged(server, each) for each in ids]
    assert [line["status"] for line in lines] == list(targets.values())
    assert [line["path"] for line in lines][:4] == [PATH, PATH, PATH, "/"]


CHUNKS = b"POST %b HTTP/1.1\r\nhost: x\r\nx-request-id: %b\r\ntransfer-encoding: chunked\r\n\r\n"


def test_what_is_not_http_has_an_id(server: Serving) -> None:
    """Bytes that are no request, and a body that breaks off, are answered under the id in the log."""
    before = _unreadable(server)
    got = asyncio.run(exchange(server.port, b"GARBAGE\r\n\r\n"))
    assert (got.status, got.headers["connection"]) == (400, "close")
    line = logged(server, got.headers["x-request-id"])
    assert (line["status"], line["client"], line["outcome"]) == (400, "127.0.0.1", "unreadable")
    assert _unreadable(server) == before + 1
    for id, body in (("broken-off-1", b"zz\r\n"), ("broken-off-2", b"1\r\nxzz\r\n")):
        broken = asyncio.run(exchange(server.port, CHUNKS % (PATH.encode(), id.encode()) + body))
        assert (broken.status, broken.headers["x-request-id"]) == (400, id)
        assert logged(server, id)["path"] == PATH
    assert _unreadable(server) == before + 1


def test_what_is_not_http_after_an_answer_has_begun(server: Serving) -> None:
    """The answer goes out whole, the connection is closed, and nothing is logged as an error."""

    async def trial() -> tuple[Answer, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(CHUNKS % (b"/elsewhere", b"answered-already"))
        got = await answer(reader)
        writer.write(b"zz\r\n")
        async with asyncio.timeout(10):
            rest = await reader.read()
        writer.close()
        return got, rest

    got, rest = asyncio.run(trial())
    assert (got.status, rest) == (404, b"")
    after = asyncio.run(exchange(server.port, GET))
    logged(server, after.headers["x-request-id"])
    assert [line for line in server.lines() if line["level"] == "error"] == []


def _unreadable(server: Serving) -> float:
    """Return how many answers 400 the metrics have counted outside of the routes."""
    found = re.search(r'requests_total\{route="other",status="400"\} (\S+)', server.get("/metrics")[1])
    return float(found[1]) if found else 0.0


def logged(server: Serving, request_id: str) -> dict[str, Any]:
    """Return the log's line about a request once it is written, which may be after the answer."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        for line in server.lines():
            if line.get("request_id") == request_id:
                return line
        time.sleep(0.01)
    raise AssertionError(f"no line about {request_id}: {server.log.read_text()}")


def test_a_flood_of_the_same_news_is_one_line(tmp_path: Path) -> None:
    """Out of file descriptors, the log says so now and then; with some to spare all are served."""
    with serving(tmp_path / "run", sqlite(tmp_path)) as server:
        in_use = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        before = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (in_use + 4, before[1]))
        sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        time.sleep(2.5)
        for each in sockets:
            each.close()
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, before)
        server.ready()
        told_of = [line for line in server.lines() if line["event"] == "library"]
        assert 1 <= len(told_of) <= 6
        assert "out of system resource" in told_of[0]["message"]


def test_a_thousand_connections(server: Serving) -> None:
    """A thousand that are open and silent cost nobody else anything; all of them can then deliver."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))

    async def trial() -> list[int]:
        streams = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(1000)]
        assert (await exchange(server.port, GET)).status == 200
        found = []
        for number, (_, writer) in enumerate(streams):
            sending = told(f"many-{number}", {"type": "x", "timestamp": "2026-01-01T00:00:00Z"})
            writer.write(request(sending.raw, sending.headers()))
            if number % 50 == 49:
                found += [(await answer(each)).status for each, _ in streams[number - 49 : number + 1]]
        for _, writer in streams:
            writer.close()
        return found

    try:
        assert asyncio.run(trial()) == [202] * 1000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_large_bodies_are_few_at_a_time(server: Serving) -> None:
    """So many large bodies may be on their way; one more is refused, a small one never."""
    large = request(b"x" * 1_000_000, GOOD.headers())[:200_000]

    async def trial() -> tuple[list[Answer], Answer]:
        streams = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(33)]
        for _, writer in streams:
            writer.write(large)
        first = [asyncio.create_task(answer(reader)) for reader, _ in streams]
        done, _ = await asyncio.wait(first, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        small = Sending(id="small", raw=GOOD.raw)
        served = await exchange(server.port, request(small.raw, small.headers()))
        for _, writer in streams:
            writer.close()
        refused = [each.result() for each in done]
        await asyncio.gather(*first, return_exceptions=True)
        return refused, served

    refused, served = asyncio.run(trial())
    assert [each.status for each in refused] == [503]
    assert served.status == 202


def test_pipelined(server: Serving) -> None:
    """Requests that are sent without waiting for answers get theirs, in order."""

    async def trial() -> list[int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for number in range(3):
            each = Sending(id=f"pipelined-{number}", raw=GOOD.raw)
            writer.write(request(each.raw, each.headers()))
        writer.write(GET)
        found = [(await answer(reader)).status for _ in range(4)]
        writer.close()
        return found

    assert asyncio.run(trial()) == [202, 202, 202, 200]


def test_clients_that_leave(server: Serving) -> None:
    """Who leaves amid a body, or before the answer, harms nobody."""

    async def trial() -> None:
        for cut in (10, 200, 600, len(GOOD.raw)):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            sending = Sending(id=f"left-{cut}", raw=GOOD.raw)
            writer.write(request(sending.raw, sending.headers())[:-cut])
            await writer.drain()
            writer.write_eof() if cut == 200 else writer.transport.abort()
            writer.close()

    asyncio.run(trial())
    assert server.get("/healthz") == (200, '{"status":"ok"}')
    assert [line for line in server.lines() if line["event"] == "library" and line["level"] == "error"] == []


def test_an_unread_log_delays_nobody(tmp_path: Path) -> None:
    """Nobody reads stderr and its pipe is full: answers come as ever, lines are dropped and counted."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while os.write(write, b"x" * 4096):
            pass
    os.set_blocking(write, True)
    url = sqlite(tmp_path)
    sendings = [
        told(f"evt-{number}", {"type": "x", "timestamp": "2026-01-01T00:00:00Z"}) for number in range(5000)
    ]
    with serving(tmp_path / "run", url, stderr=write) as server:
        sent = asyncio.run(flood(server.port, sendings))
        assert {each.answer and each.answer.status for each in sent} == {202}
        server.get("/metrics")
        text = server.get("/metrics")[1]
        assert server.stop() == 0
    os.close(write)
    os.close(read)
    dropped = next(line for line in text.splitlines() if line.startswith("polarcredits_log_lines_dropped_t"))
    assert float(dropped.split()[1]) > 500
