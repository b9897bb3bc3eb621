"""Pages as answers: templates, and the headers that keep them private and quiet."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from polarcredits.errors import PolarUnavailable
from polarcredits.periods import format_time
from polarcredits.server import presentation
from polarcredits.settings import Settings

_TEMPLATES = Path(__file__).parent / "templates"
_HSTS = timedelta(days=365)
_POLAR = ("https://polar.sh", "https://*.polar.sh")


class Renderer:
    """Makes answers of templates. Links in them start with the path of the public URL."""

    def __init__(self, settings: Settings) -> None:
        css = (_TEMPLATES / "style.css").read_text("utf-8")
        self._targets = _targets(settings.base_url)
        digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
        self._headers = {
            "Content-Security-Policy": "; ".join(
                (
                    "default-src 'none'",
                    f"style-src 'sha256-{digest}'",
                    "img-src data:",
                    f"form-action 'self' {' '.join(self._targets)}",
                    "base-uri 'none'",
                    "frame-ancestors 'none'",
                )
            ),
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=()",
        }
        self._environment = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "number": presentation.number,
            "when": presentation.when,
            "iso": format_time,
        }
        self._environment.globals |= {
            "css": Markup(css),
            "base": urlsplit(settings.public_url or "").path,
        }

    def page(
        self,
        request: Request,
        template: str,
        *,
        status: int = 200,
        public: bool = False,
        headers: Mapping[str, str] | None = None,
        **values: Any,
    ) -> Response:
        """Return a page. Only a *public* one, the same for everybody, may be kept by anybody."""
        text = self._environment.get_template(template).render(**values)
        own = {
            **self._headers,
            "Cache-Control": "public, max-age=60" if public else "no-store",
            **(headers or {}),
        }
        if not public:
            own["X-Robots-Tag"] = "noindex"
        if request.url.scheme == "https":
            own["Strict-Transport-Security"] = f"max-age={int(_HSTS.total_seconds())}"
        return HTMLResponse(text, status_code=status, headers=own)

    def leave(self, request: Request, url: str, *, what: str) -> Response:
        """Send a browser to Polar after a form. Raises PolarUnavailable where the address is none.

        Browsers hold redirects of forms to the page's form-action; an address beyond it becomes a link.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname or not url.isprintable():
            raise PolarUnavailable("Polar's answer has no usable address. Try again later.")
        if not any(_covers(target, parts) for target in self._targets):
            return self.page(request, "leave.html", url=url, what=what)
        answer = self.page(request, "leave.html", status=303, url=url, what=what)
        answer.headers["Location"] = RedirectResponse(url).headers["location"]
        return answer


def _targets(base_url: str | None) -> tuple[str, ...]:
    """Return where forms may lead: Polar, or the host of a server in its place and those beside it."""
    if base_url is None:
        return _POLAR
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    if ":" in host:  # a content policy cannot name an IPv6 address
        return ()
    near = [f"{parts.scheme}://{host}:*"]
    if host.count(".") >= 2 and not host.replace(".", "").isdecimal():
        near.append(f"{parts.scheme}://*.{host.partition('.')[2]}:*")
    return tuple(near)


def _covers(target: str, url: SplitResult) -> bool:
    """Say whether a source of a content policy, as we write them, covers an address."""
    scheme, _, rest = target.partition("://")
    pattern = rest.removesuffix(":*")
    if url.scheme != scheme or (pattern == rest and url.port not in (None, 443)):
        return False
    host = url.hostname or ""
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
