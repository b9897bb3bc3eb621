"""The two of Polar's own pages that buyers see: a checkout with a button that pays, and the portal."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from tests.stand_in.state import State


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A page, or where a browser is sent."""

    status: int
    html: str = ""
    location: str | None = None


def show(state: State, method: str, path: str) -> Shown | None:
    """Return what a browser gets at a path, None where that belongs to the API."""
    match method, path.strip("/").split("/"):
        case "GET", ["portal"]:
            return Shown(status=200, html=_page("Customer portal", "<p>Invoices and subscriptions.</p>"))
        case "GET", ["checkout", id]:
            held = state.find("checkout", id)
            if held is None:
                return Shown(status=404, html=_page("No checkout", ""))
            form = f'<form method="post" action="/checkout/{escape(id)}/pay"><button>Pay</button></form>'
            return Shown(status=200, html=_page(f"Checkout: {held['products'][0]['name']}", form))
        case "POST", ["checkout", id, "pay"] if state.find("checkout", id):
            state.pay(id)
            target = str(state.objects["checkout"][id]["success_url"])
            return Shown(status=303, location=target.replace("{CHECKOUT_ID}", id))
    return None


def _page(title: str, body: str) -> str:
    icon = '<link rel="icon" href="data:,">'
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>{icon}'
    return f"{head}<h1>{escape(title)}</h1>{body}"
