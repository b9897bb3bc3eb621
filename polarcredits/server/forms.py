"""What a browser sends with a form: read within bounds, and only from our own pages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import ClientDisconnect, Request

from polarcredits.errors import InvalidInput
from polarcredits.server.refusals import Foreign

_LARGEST = 16 * 1024
_SECONDS = 10.0
_MOST_FIELDS = 8


async def read_form(request: Request) -> Mapping[str, str]:
    """Return the fields of a form. Raises InvalidInput where it is too large, too slow or no form."""
    body = b""
    try:
        async with asyncio.timeout(_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > _LARGEST:
                    raise InvalidInput("The form is too large.")
    except (TimeoutError, ClientDisconnect):
        raise InvalidInput("The form did not arrive.") from None
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise InvalidInput("That is no form.") from None
    return dict(pairs)


def refuse_foreign(request: Request, public_url: str | None) -> None:
    """Raise Foreign for a form that another site sent.

    Browsers say where a form comes from in Sec-Fetch-Site; where they do not, Origin counts, which is
    `null` on our own pages, because they send no referrer.
    """
    site = request.headers.get("sec-fetch-site")
    if site not in (None, "same-origin"):
        raise Foreign("The form was sent from another site.")
    origin = request.headers.get("origin", "null")
    ours = {request.headers.get("host"), urlsplit(public_url or "").netloc}
    if site is None and origin != "null" and _host_of(origin) not in ours:
        raise Foreign("The form was sent from another site.")


def _host_of(origin: str) -> str | None:
    """Return the host and port of an Origin header, None where it has none."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
