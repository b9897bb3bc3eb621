"""A real Chromium that visits a real server, and notices everything that it complains of."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.server.market import Market, market

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

Visit = Callable[..., "Page"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The system's Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program is not None, "There is no chromium: apt-get install chromium"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def open_market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with market(tmp_path_factory.mktemp("market"), public=True) as running:
        yield running


@pytest.fixture
def shop(open_market: Market) -> Market:
    """The market with nothing made at Polar yet."""
    open_market.clear()
    return open_market


@pytest.fixture
def visit(chromium: Browser, shop: Market) -> Iterator[Visit]:
    """Open a page: `visit("/pricing", scheme="dark", width=390, scripts=False)`.

    *status* is what it answers, *may_answer* what a later one may.
    At the end no page may have complained: no error in the console, nothing that the policy refused.
    """
    complaints: list[str] = []
    contexts = []

    def visit(
        path: str,
        *,
        scheme: str = "light",
        width: int = 1200,
        scripts: bool = True,
        status: int = 200,
        may_answer: int | None = None,
    ) -> Page:
        context = chromium.new_context(
            base_url=shop.server.url,
            color_scheme="dark" if scheme == "dark" else "light",
            viewport={"width": width, "height": 900},
            java_script_enabled=scripts,
            extra_http_headers={"x-forwarded-for": str(shop.visitor.headers["x-forwarded-for"])},
        )
        contexts.append(context)
        page = context.new_page()

        refusals = {each for each in (status, may_answer) if each is not None and each >= 400}

        def note(message: ConsoleMessage) -> None:
            refused = any(f"responded with a status of {each} " in message.text for each in refusals)
            if message.type in ("error", "warning") and not refused:
                complaints.append(f"{page.url}: {message.text}")

        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(f"{page.url}: {error}"))
        page.on("requestfailed", lambda request: complaints.append(f"{request.url}: {request.failure}"))
        answer = page.goto(path)
        assert answer is not None
        assert answer.status == status
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go, for people to look at: pytest keeps the last three runs."""
    return tmp_path
