"""The recorded deliveries, for the tests."""

from __future__ import annotations

from pathlib import Path

from polarcredits.webhooks.reading import StoredDelivery, read_elements

SECRET = "whsec_DaZKoHHT4AhwCiN2xe2KgBUTvrJm6gf5Vi9dg1QiIo2"
FILES = sorted((Path(__file__).parents[1] / "deliveries").glob("*.jsonl"))


def recorded(path: Path) -> list[StoredDelivery]:
    """Return the deliveries of one file; every line is one."""
    elements = read_elements(path.read_bytes(), path.name)
    found = [element for element in elements if isinstance(element, StoredDelivery)]
    assert len(found) == len(elements) > 0
    return found
