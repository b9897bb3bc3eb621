"""Requests to Polar: sent through its SDK, repeated where that is safe, failures told in our words.

The SDK builds and sends; its typed models are not used to read answers, because they refuse unknown
values. A failure is one of three: try again (PolarUnavailable), refused (PolarRefused), not there (None).
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import httpx
from polar.base import PolarNetworkError
from polar.v2026_10 import Polar

from polarcredits.errors import ConfigError, PolarRefused, PolarUnavailable

_LONGEST_PAUSE = 8.0
_EXCERPT = 300
UNNAMEABLE = frozenset({"", ".", ".."})
"""Ids that would lead elsewhere as part of a path, however quoted: nothing can be asked for by them."""
_BEFORE_POLAR = (502, 503, 504)
"""What a proxy answers in Polar's place, while Polar may still be at work."""
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_CLOCK_STEP = timedelta(seconds=1)
"""A Date header has whole seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long Polar may take: seconds, and attempts of one request."""

    attempts: int
    call: float
    """For one request with all its attempts and pauses."""
    whole: float | None
    """For everything that is sent through one transport; nothing begins later."""
    answer: float
    connection: float


PATIENT = Patience(attempts=4, call=75.0, whole=None, answer=10.0, connection=5.0)
"""Enough for the one minute that Polar's limiter asks for."""
HURRIED = Patience(attempts=2, call=4.0, whole=12.0, answer=4.0, connection=3.0)
"""For somebody who looks at a page meanwhile: only a quick failure is tried again."""


class OutcomeUnknown(PolarUnavailable):
    """The request was sent, and nobody can say whether it took effect; if `pending`, it still may.

    It may where no answer came, and where something before Polar answered in its place.
    """

    def __init__(self, message: str, *, pending: bool = False) -> None:
        super().__init__(message)
        self.pending = pending


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What Polar answered: a JSON document, and since when it is true."""

    document: Any
    date: datetime | None
    took: timedelta

    @property
    def told_at(self) -> datetime | None:
        """Polar's own clock when it began to answer, on the safe side (docs/rules.md §1.1).

        None where the answer has no Date: our clock must not stand in for it.
        """
        return None if self.date is None else self.date - self.took - _CLOCK_STEP


class _TryAgain(Exception):
    """One attempt failed in a way that another may mend."""

    def __init__(
        self, why: str, *, wait: float | None = None, sent: bool = True, pending: bool = False
    ) -> None:
        super().__init__(why)
        self.why = why
        self.wait = wait
        self.sent = sent
        self.pending = pending


class Transport:
    """Sends requests to one Polar server."""

    def __init__(
        self,
        token: str,
        *,
        environment: Literal["sandbox", "production"],
        base_url: str | None = None,
        patience: Patience = PATIENT,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not token.isascii() or not token.isprintable():
            raise ConfigError("POLAR_ACCESS_TOKEN is no token of Polar's.", setting="POLAR_ACCESS_TOKEN")
        if base_url is not None:
            _check_url(base_url)
        self._token = token
        self._environment = environment
        self._sleep = sleep
        self.patience = patience
        self._end = math.inf if patience.whole is None else time.monotonic() + patience.whole
        timeout = httpx.Timeout(patience.answer, connect=patience.connection)
        self._sdk = Polar(token, environment=environment, base_url=base_url, timeout=timeout)
        self._client = self._sdk.customers.client

    def close(self) -> None:
        """Close the connections."""
        self._sdk.__exit__()

    def pause(self, attempt: int) -> None:
        """Wait before an attempt after the *attempt*-th one."""
        self._sleep(_backoff(attempt))

    def send(
        self,
        method: str,
        path: str,
        *,
        ids: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        repeatable: bool = True,
    ) -> Answer | None:
        """Send a request and return the answer; None for 404.

        *ids* fill the path's {names}, quoted; nothing is there by an UNNAMEABLE one. Raises
        PolarRefused and PolarUnavailable; where the request is not *repeatable* and was sent, the
        latter is an OutcomeUnknown.
        """
        if not UNNAMEABLE.isdisjoint((ids or {}).values()):
            return None
        quoted = {name: quote(value, safe="") for name, value in (ids or {}).items()}
        give_up = min(time.monotonic() + self.patience.call, self._end)
        if time.monotonic() > self._end:
            raise PolarUnavailable("Polar takes too long to answer. Try again later.")
        for attempt in range(1, self.patience.attempts + 1):
            try:
                return self._once(method, path, quoted, query, body)
            except _TryAgain as failure:
                if failure.sent and not repeatable:
                    raise OutcomeUnknown(f"Polar: {failure.why}.", pending=failure.pending) from failure
                pause = failure.wait if failure.wait is not None else _backoff(attempt)
                if attempt == self.patience.attempts or time.monotonic() + pause > give_up:
                    raise _unavailable(failure, attempt) from failure
                self._sleep(pause)
        raise AssertionError("unreachable")

    def _once(
        self,
        method: str,
        path: str,
        ids: Mapping[str, str],
        query: Mapping[str, Any] | None,
        body: Mapping[str, Any] | None,
    ) -> Answer | None:
        request = self._client.build_request(
            method, path, path_params=dict(ids), query_params=dict(query or {}), body=body
        )
        began = time.monotonic()
        try:
            response = self._client.send_request(request)
        except PolarNetworkError as error:
            cause = error.__cause__
            raise _TryAgain(
                _told(cause, request),
                sent=not isinstance(cause, _NEVER_SENT),
                pending=True,
            ) from error
        took = timedelta(seconds=time.monotonic() - began)
        status = response.status_code
        if status == 404:
            return None
        if status == 429:
            raise _TryAgain("too many requests (429)", wait=_retry_after(response), sent=False)
        if status >= 500:
            raise _TryAgain(
                f"it answered {status}: {self._excerpt(response)}", pending=status in _BEFORE_POLAR
            )
        if not response.is_success:
            raise self._refusal(response, method, path)
        return Answer(document=self._document(response), date=_date(response), took=took)

    def _document(self, response: httpx.Response) -> Any:
        if not response.content:
            return None
        try:
            return response.json()
        except (ValueError, RecursionError):
            raise _TryAgain(f"its answer is no JSON: {self._excerpt(response)}") from None

    def _refusal(self, response: httpx.Response, method: str, path: str) -> PolarRefused:
        status = response.status_code
        detail = self._detail(response)
        advice = ""
        if status == 401:
            advice = (
                f" Check POLAR_ACCESS_TOKEN; POLAR_ENVIRONMENT is {self._environment}, "
                "and sandbox and production have tokens of their own."
            )
        elif status == 403:
            advice = " The token may lack a scope; see: polarcredits doctor"
        elif response.is_redirect:
            detail, advice = "it redirects elsewhere", " Check POLAR_BASE_URL."
        return PolarRefused(
            f"Polar refused {method} {path} ({status}): {detail}.{advice}",
            status=status,
            detail=detail,
            request_id=_request_id(response),
        )

    def _detail(self, response: httpx.Response) -> str:
        """Return what a refusal says, in a line: FastAPI's list of problems, or Polar's sentence."""
        document: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            document = response.json()
        detail = document.get("detail") if isinstance(document, dict) else None
        if isinstance(detail, list):
            problems = [each for each in detail if isinstance(each, dict)]
            told = "; ".join(
                f"{'.'.join(map(str, each.get('loc', ())))}: {each.get('msg')}" for each in problems
            )
            return self._clean(told)
        return self._clean(detail) if isinstance(detail, str) else self._excerpt(response)

    def _excerpt(self, response: httpx.Response) -> str:
        return self._clean(response.text) or "nothing"

    def _clean(self, text: str) -> str:
        """Return the text on one short line, without the token."""
        line = " ".join(text.replace(self._token, "***").split())
        shown = "".join(character for character in line if character.isprintable())
        return (shown[:_EXCERPT] + "…" if len(shown) > _EXCERPT else shown).rstrip(".")


def _check_url(base_url: str) -> None:
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"POLAR_BASE_URL {base_url!r} is no http(s) address.", setting="POLAR_BASE_URL")


def _backoff(attempt: int) -> float:
    """Return a growing pause with jitter, so that many clients do not come back at once."""
    return min(_LONGEST_PAUSE, 2.0 ** (attempt - 2)) * random.uniform(0.5, 1.0)


def _unavailable(failure: _TryAgain, attempts: int) -> PolarUnavailable:
    later = "" if failure.wait is None else f" It asks to wait {failure.wait:.0f} s."
    return PolarUnavailable(
        f"Polar: {failure.why}, after {attempts} attempts.{later} Try again later.",
        attempts=attempts,
        retry_after=None if failure.wait is None else round(failure.wait),
    )


def _told(cause: BaseException | None, request: httpx.Request) -> str:
    host = request.url.host
    if isinstance(cause, httpx.TimeoutException):
        return f"{host} did not answer in time"
    if isinstance(cause, httpx.ConnectError):
        return f"{host} cannot be reached ({cause})"
    return f"the connection to {host} failed ({type(cause).__name__}: {cause})"


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that Retry-After names, as a number or a date; None for anything else."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal() and len(text) < 7:
        return float(text)
    until = _http_date(text)
    now = _date(response)
    return max(0.0, (until - now).total_seconds()) if until and now else None


def _date(response: httpx.Response) -> datetime | None:
    return _http_date(response.headers.get("date", ""))


def _http_date(text: str) -> datetime | None:
    try:
        time = parsedate_to_datetime(text)
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _request_id(response: httpx.Response) -> str | None:
    for name in ("x-request-id", "request-id", "cf-ray"):
        if response.headers.get(name):
            return str(response.headers[name])[:100]
    return None
