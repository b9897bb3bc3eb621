"""A `polarcredits serve-webhooks` of its own process, as an operator starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from polarcredits.ledger.ledger import Ledger
from polarcredits.plans import Catalog, parse_catalog
from tests.webhooks.recordings import SECRET

PRO = "e5e52250-8ea2-4e30-b1ae-60bd1c83e7b6"
PACK = "614510d7-64a2-4342-9d93-7fd38e9b2062"
TOML = f"""
[plans.free]
credits = 1000
interval = "lifetime"
[plans.pro]
credits = 5000
interval = "month"
product_ids = ["{PRO}"]
[packs.small]
credits = 1000
product_ids = ["{PACK}"]
"""


def catalog() -> Catalog:
    """Return the plans that the servers of the tests have."""
    return parse_catalog(TOML, pro_product_id=None)


def opened(url: str) -> Ledger:
    """Open the ledger that a server writes."""
    return Ledger(url, catalog(), actor="test")


class Serving:
    """A server that runs; `log` is the file that its stderr goes to."""

    def __init__(
        self,
        folder: Path,
        database: str,
        *,
        options: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        stderr: int | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "polarcredits.toml").write_text(TOML)
        self.log = folder / "stderr.log"
        kept = {key: text for key, text in os.environ.items() if not key.startswith("POLAR")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "polarcredits", "--json", "serve-webhooks", "--port", "0", *options],
                cwd=folder,
                env={
                    **kept,
                    "POLARCREDITS_DATABASE_URL": database,
                    "POLAR_WEBHOOK_SECRET": SECRET,
                    **(environ or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log if stderr is None else stderr,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        self.document: dict[str, Any] = json.loads(self.process.stdout.readline() or b"{}")
        self.url: str = self.document.get("url", "")
        self.port = int(self.url.rpartition(":")[2] or 0)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Ask for a path; return status and text."""
        request = urllib.request.Request(self.url + path, headers=dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the log so far."""
        whole = self.log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def workers(self, number: int) -> list[int]:
        """Return the ids of the workers' processes once so many have started."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            started = [line["pid"] for line in self.lines() if line["event"] == "worker_started"]
            if len(started) >= number:
                return started
            time.sleep(0.05)
        raise AssertionError(f"{number} workers did not start: {self.log.read_text()}")

    def ready(self) -> None:
        """Wait until the server says that it is ready."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with suppress(OSError):
                if self.get("/readyz")[0] == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"not ready: {self.log.read_text()}")

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Ask the server to stop; return its exit code."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, sig)
        return self.process.wait(30)

    def kill(self) -> None:
        """Kill every process of the server."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def serving(folder: Path, database: str, **how: Any) -> Iterator[Serving]:
    """Run a server that is ready, and kill what is left of it at the end."""
    server = Serving(folder, database, **how)
    try:
        assert server.url, (server.document, server.log.read_text())
        server.ready()
        yield server
    finally:
        server.close()
