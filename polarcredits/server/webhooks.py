"""`POST /webhooks/polar`: verified, stored and applied, and only then acknowledged (docs/rules.md §8)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from polarcredits.errors import ConfigError, DatabaseBusy, DatabaseError
from polarcredits.ledger.async_batching import AsyncGroup
from polarcredits.server.bodies import Bodies, BodyTooLarge, BodyTooSlow, ClosingResponse, TooManyLarge
from polarcredits.server.context import ServerContext
from polarcredits.server.log import JsonLog
from polarcredits.server.metrics import Metrics, type_label
from polarcredits.webhooks.inbox import Outcome
from polarcredits.webhooks.signature import Delivery, Reason, SignatureRefused, verify

ANSWER_SECONDS = 8.0
"""How long a delivery waits for its commit, at most; Polar itself waits 10 s."""
MOST_IN_A_COMMIT = 64
_DOUBT_SECONDS = 10.0
"""How long a server is not ready after a commit that failed, unless one succeeds before."""
_MOST_WAITING = 1000
_OFF_THE_LOOP = 64 * 1024
_STATUS: dict[Reason, int] = {
    "missing_header": HTTPStatus.BAD_REQUEST,
    "not_json": HTTPStatus.BAD_REQUEST,
    "malformed": HTTPStatus.UNAUTHORIZED,
    "mismatch": HTTPStatus.UNAUTHORIZED,
    "stale": HTTPStatus.UNAUTHORIZED,
    "triggered": HTTPStatus.FORBIDDEN,
    "organization_secret": HTTPStatus.FORBIDDEN,
}
_SIGNED = (b"webhook-id", b"webhook-timestamp", b"webhook-signature")
_READ = (*_SIGNED, b"x-polar-triggered")


class Receiver:
    """Answers deliveries; those that come at the same time share a commit."""

    def __init__(self, context: ServerContext, *, log: JsonLog, metrics: Metrics) -> None:
        self._context = context
        self._log = log
        self._metrics = metrics
        self._secrets = [secret.reveal() for secret in context.settings.webhook_secrets]
        self._bodies = Bodies()
        self._group: AsyncGroup[Delivery, Outcome] = AsyncGroup(
            self._take, most=MOST_IN_A_COMMIT, waiting=_MOST_WAITING
        )
        self._began: float | None = None
        self._failed: float | None = None

    @property
    def stuck(self) -> bool:
        """Whether the database takes no deliveries: a commit hangs, or the last one failed just now.

        After a while without deliveries that is no longer known, and worth a try. Another's lock is no
        failure.
        """
        now, began, failed = time.monotonic(), self._began, self._failed
        hangs = began is not None and now - began > ANSWER_SECONDS
        return hangs or (failed is not None and now - failed < _DOUBT_SECONDS)

    async def close(self) -> None:
        """Answer what was accepted, then refuse."""
        await self._group.close()

    async def receive(self, request: Request) -> Response:
        """Answer one delivery."""
        try:
            async with self._bodies.read(request) as body:
                delivery = await self._verified(body, request.headers.raw)
                async with asyncio.timeout(ANSWER_SECONDS):
                    outcome = await self._group.ask(delivery)
        except BodyTooLarge:
            return self._refuse(request, 413, "too_large", "The body is larger than 1 MiB.", close=True)
        except BodyTooSlow:
            return self._refuse(request, 408, "too_slow", "The body took too long to arrive.", close=True)
        except TooManyLarge:
            return self._refuse(request, 503, "overloaded", "Too many large bodies at once.", close=True)
        except ClientDisconnect:
            return self._refuse(request, 400, "disconnected", "The body was cut off.")
        except SignatureRefused as refusal:
            return self._refuse(request, _STATUS[refusal.reason], refusal.reason, refusal.message)
        except (DatabaseError, ConfigError) as error:
            self._log.write("unavailable", level="error", code=error.code, message=error.message)
            return self._refuse(request, 503, "unavailable", "The database is unavailable; send it again.")
        except TimeoutError:
            self._log.write("unavailable", level="error", code="slow", message="No commit in time.")
            return self._refuse(request, 503, "unavailable", "The database is too slow; send it again.")
        return self._accept(request, delivery, outcome)

    async def _verified(self, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> Delivery:
        """Return the delivery; a large body is hashed and parsed off the event loop."""
        read = _headers(headers)

        def work() -> Delivery:
            return verify(
                body,
                read,
                self._secrets,
                now=self._context.now(),
                allow_triggered=self._context.allow_triggered,
            )

        return work() if len(body) <= _OFF_THE_LOOP else await self._context.with_threads(work)

    def _take(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome | Exception]:
        self._began = time.monotonic()
        try:
            taken = self._context.inbox.take_many(deliveries, now=self._context.now())
        except DatabaseBusy:
            raise
        except DatabaseError:
            self._failed = time.monotonic()
            raise
        else:
            self._failed = None
            return taken
        finally:
            self._began = None

    def _accept(self, request: Request, delivery: Delivery, outcome: Outcome) -> Response:
        told = "duplicate" if outcome.duplicate else outcome.status
        kind = type_label(delivery.type)
        self._metrics.deliveries.labels(kind, told).inc()
        request.scope["state"]["told"] = {"webhook_id": delivery.id, "type": kind, "outcome": told}
        return JSONResponse({"status": told}, HTTPStatus.ACCEPTED)

    def _refuse(
        self, request: Request, status: int, reason: str, message: str, *, close: bool = False
    ) -> Response:
        self._metrics.deliveries.labels("unverified", reason).inc()
        request.scope["state"]["told"] = {"outcome": reason}
        answer = ClosingResponse if close else JSONResponse
        return answer(
            {"error": {"code": reason, "message": message}},
            status,
            {"retry-after": "5"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None,
        )


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers that decide, each once: a doubled one could mean this to us and that to others."""
    found: dict[str, str] = {}
    for name, value in raw:
        if name not in _READ:
            continue
        key, text = name.decode("ascii"), value.decode("latin-1")
        if key not in found:
            found[key] = text
        elif name in _SIGNED:
            raise SignatureRefused("malformed", f"The header {key} is there twice.")
        else:
            found[key] = f"{found[key]}, {text}"
    return found
