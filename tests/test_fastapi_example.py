"""The documented FastAPI application, run as it says and asked over a real socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from polarcredits import open_ledger
from polarcredits.ledger.verify import verify

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The example under uvicorn, on a database with one user."""
    url = f"sqlite:///{tmp_path / 'credits.db'}"
    with open_ledger(url) as ledger:
        ledger.add_user("ann")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "fastapi_app:app", "--app-dir", str(EXAMPLES)]
    environment = {**os.environ, "POLARCREDITS_DATABASE_URL": url}
    process = subprocess.Popen(
        [*command, "--port", str(port), "--log-level", "warning"], cwd=tmp_path, env=environment
    )
    base = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 30
    while True:
        try:
            httpx.get(f"{base}/openapi.json")
            break
        except httpx.TransportError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield base
    process.terminate()
    assert process.wait(20) in (0, -signal.SIGTERM)
    with open_ledger(url) as ledger:
        assert verify(ledger).problems == []


def test_the_example_charges_exactly(server: str) -> None:
    """Many calls at once, some of them repeated; holds; and what is refused moves nothing."""

    async def main() -> None:
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(base_url=server, limits=limits, timeout=30) as client:
            keys = [{"Idempotency-Key": f"k{number // 2}"} for number in range(200)]
            answers = await asyncio.gather(*(client.post("/render/ann", headers=key) for key in keys))
            assert Counter(answer.status_code for answer in answers) == {200: 200}
            assert sum(answer.json()["replayed"] for answer in answers) == 100
            assert min(answer.json()["available"] for answer in answers) == 900
            used = await client.post("/generate/ann", params={"tokens": 31})
            assert used.json() == {"used": 31, "available": 869}
            unused = await client.post("/generate/ann", params={"tokens": 0})
            assert unused.json() == {"used": 0, "available": 869}
            assert (await client.post("/generate/ann", params={"tokens": -1})).status_code == 422
            assert (await client.post("/render/bob")).status_code == 404
            for _ in range(17):
                await client.post("/generate/ann", params={"tokens": 50})
            refused = await client.post("/generate/ann", params={"tokens": 50})
            assert (refused.status_code, refused.json()["required"], refused.json()["available"]) == (
                402,
                50,
                19,
            )

    asyncio.run(main())
