"""Deliveries sent to another server as Polar sends them: freshly signed, with one id each."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType

import httpx

from polarcredits.errors import InvalidInput
from polarcredits.webhooks.inbox import Outcome
from polarcredits.webhooks.signature import sign

ATTEMPTS = 4
_HOPELESS = 3
"""Events in a row that never reached the server; the rest is not tried then."""
_TIMEOUT = httpx.Timeout(10.0, connect=5.0)


class Sender:
    """Posts events to one address; a server that is away or answers 5xx is asked again.

    One that cannot be reached for some events in a row is not asked for the others.
    """

    def __init__(self, url: str, secret: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidInput(f"--to {url!r} is no http(s) address.")
        self._url = url
        self._secret = secret
        self._sleep = sleep
        self._client = httpx.Client(timeout=_TIMEOUT)
        self._unreached = 0

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._client.close()

    def send(self, raw: bytes, *, id: str, type: str | None) -> Outcome:
        """Send one event, and tell what the server said of it."""
        if self._unreached >= _HOPELESS:
            return Outcome(id=id, type=type, status="failed", error="not sent: the server cannot be reached")
        self._unreached += 1
        failure = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._sleep(0.5 * 2 ** (attempt - 1))
            signed = sign(raw, id=id, secret=self._secret, at=datetime.now(UTC))
            headers = {"content-type": "application/json", "user-agent": "polarcredits"} | signed
            try:
                response = self._client.post(self._url, content=raw, headers=headers)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failure = f"{error.__class__.__name__}: {error}"
                continue
            self._unreached = 0
            if response.is_success:
                status, duplicate = _said(response)
                return Outcome(id=id, type=type, status=status, duplicate=duplicate)
            failure = f"the server answered {response.status_code}: {_line(response.text)}"
            if response.status_code < 500 and response.status_code != 429:
                return Outcome(id=id, type=type, status="refused", error=failure)
        return Outcome(id=id, type=type, status="failed", error=failure)


def _said(response: httpx.Response) -> tuple[str, bool]:
    """Return the status that a receiver tells in its answer, and whether it knew the event."""
    try:
        document = response.json()
    except ValueError:
        return "applied", False
    told = document.get("status") if isinstance(document, dict) else None
    if told == "duplicate":
        return "applied", True
    return (told if told in ("applied", "ignored", "failed") else "applied"), False


def _line(text: str) -> str:
    return " ".join(text.split())[:200] or "nothing"
