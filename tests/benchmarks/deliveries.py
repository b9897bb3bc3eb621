"""Deliveries by the thousand, as Polar sends them: a recorded purchase and two renewals, of many customers.

Only ids and names differ from the recording, so that sizes, fields and the share of events that say
nothing about credits are real. Everything is made from its number, without chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path

from polarcredits.plans import Catalog, parse_catalog
from polarcredits.webhooks.reading import StoredDelivery, read_elements
from polarcredits.webhooks.signature import Delivery, sign, verify

SECRET = "whsec_DaZKoHHT4AhwCiN2xe2KgBUTvrJm6gf5Vi9dg1QiIo2"
PRODUCT = "e5e52250-8ea2-4e30-b1ae-60bd1c83e7b6"
NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
"""When what was recorded has happened: `now` for taking it."""

_FOLDER = Path(__file__).parents[1] / "deliveries"
_UUID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Signed:
    """One delivery: its headers and its raw body."""

    headers: dict[str, str]
    body: bytes

    def verified(self) -> Delivery:
        """Return it as it is once its signature was verified."""
        return verify(self.body, self.headers, [SECRET], now=None)


def catalog() -> Catalog:
    """Return plans for what is bought in these deliveries."""
    text = f"""
    [plans.pro]
    credits = 5000
    interval = "month"
    product_ids = ["{PRODUCT}"]
    """
    return parse_catalog(text, pro_product_id=None)


def deliveries(many: int, *, at: datetime = NOW) -> Iterator[Signed]:
    """Yield so many deliveries, signed at *at*: one customer's after another's, each in Polar's order."""
    return islice(_all(at), many)


def user(number: int) -> str:
    """Return the user id of a customer."""
    return f"user_{number:08x}"


def _all(at: datetime) -> Iterator[Signed]:
    told = _templates()
    for number in count():
        for place, template in enumerate(told):
            body = template.replace(b"\0", b"%08x" % number)
            id = f"{number:08x}-0000-4000-8000-{place:012x}"
            headers = {"user-agent": "polar.sh webhooks", "content-type": "application/json"}
            yield Signed(headers | sign(body, id=id, secret=SECRET, at=at), body)


def _templates() -> list[bytes]:
    """Return recorded bodies with a mark wherever a customer's own ids and names are."""
    bodies = _recorded("alice-purchase", "alice-two-renewals")
    shared = {found.group() for body in _recorded("carol-1-purchase") for found in _UUID.finditer(body)}

    def marked(found: re.Match[bytes]) -> bytes:
        id = found.group()
        return id if id in shared else b"\0" + id[8:]

    names = re.compile(rb"(?<=user_)alice|alice(?=@)")
    return [names.sub(b"\0", _UUID.sub(marked, body)) for body in bodies]


def _recorded(*names: str) -> list[bytes]:
    files = [_FOLDER / f"{name}.jsonl" for name in names]
    elements = [each for file in files for each in read_elements(file.read_bytes(), file.name)]
    return [each.raw for each in elements if isinstance(each, StoredDelivery)]
