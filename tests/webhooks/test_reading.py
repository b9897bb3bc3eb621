"""Files of deliveries: every form, and every way in which one can be broken."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarcredits.webhooks.reading import BarePayload, Broken, StoredDelivery, read_elements
from tests.webhooks.recordings import FILES, recorded

BARE = {"type": "order.paid", "timestamp": "2026-11-23T06:00:00Z", "data": {"id": "ö"}}
STORED = {"headers": {"Webhook-Id": "e1"}, "body": '{"a": "ö"}'}


def read(*lines: object) -> list[Any]:
    return list(read_elements("\n".join(map(json.dumps, lines)).encode(), "f"))


def error(element: object) -> str:
    (broken,) = read(element)
    assert isinstance(broken, Broken)
    assert broken.where == "f:1"
    return broken.error


def test_recorded_files() -> None:
    """All of the recorded deliveries are read, by line."""
    assert sum(len(recorded(path)) for path in FILES) == 134
    assert recorded(FILES[0])[-1].where == "alice-purchase.jsonl:16"


def test_a_stored_delivery() -> None:
    """The body's bytes are those that were received; headers are found in any case."""
    (one,) = read(STORED)
    assert one == StoredDelivery(where="f:1", headers={"webhook-id": "e1"}, raw='{"a": "ö"}'.encode())
    pairs = [["Webhook-Id", "e1"], ["webhook-id", "e2"], ["n", 5], ["none", None]]
    encoded = base64.b64encode(b"\xff{").decode()
    (other,) = read({"headers": pairs, "body": "ignored", "body_base64": encoded})
    assert other == StoredDelivery(where="f:1", headers={"webhook-id": "e1", "n": "5"}, raw=b"\xff{")
    assert read(STORED | {"body_base64": None}) == [one]


def test_a_bare_payload() -> None:
    """Its id is the digest of its canonical JSON, however it is written."""
    (one,) = read(BARE)
    assert isinstance(one, BarePayload)
    assert one.payload == BARE
    assert one.raw.startswith(b'{"data":{"id":"\\u00f6"},"timestamp"')
    assert one.id.startswith("sha256:")
    assert len(one.id) == 7 + 64
    turned = json.dumps(dict(reversed(BARE.items())), indent=4, ensure_ascii=False)
    (other,) = read_elements(f"\n\n{turned}\n".encode(), "f")
    assert isinstance(other, BarePayload)
    assert (other.id, other.where) == (one.id, "f:3")


@pytest.mark.parametrize("text", [b"", b" \n\r\n", b"[]", b"\xef\xbb\xbf"])
def test_nothing(text: bytes) -> None:
    """An empty file has no elements."""
    assert read_elements(text, "f") == []


def test_an_array() -> None:
    """Elements of an array are told by their index; one that is broken spoils no other."""
    text = b"\xef\xbb\xbf" + json.dumps([BARE, 7, BARE | {"data": float("nan")}, STORED]).encode()
    bare, odd, nan, stored = read_elements(text, "f")
    assert isinstance(bare, BarePayload)
    assert isinstance(odd, Broken)
    assert isinstance(nan, Broken)
    assert isinstance(stored, StoredDelivery)
    assert [e.where for e in (bare, odd, nan, stored)] == ["f[0]", "f[1]", "f[2]", "f[3]"]


def test_json_lines() -> None:
    """Blank lines are passed over; a broken line is named, and the others are read."""
    good = json.dumps(STORED).encode()
    text = b"\n".join([good, b"", b'{"headers": ', b'{"a": "\xff"}', good + b"\r", b"5", b""])
    elements = read_elements(text, "f")
    assert [element.where for element in elements] == ["f:1", "f:3", "f:4", "f:5", "f:6"]
    assert [isinstance(e, StoredDelivery) for e in elements] == [True, False, False, True, False]
    assert isinstance(elements[2], Broken)
    assert "UTF-8" in elements[2].error


@pytest.mark.parametrize("text", [b"nonsense\nin lines", b"[{},\n{},\n", b'{\n "a": 1,\n}\n'])
def test_one_broken_document(text: bytes) -> None:
    """What is not one element a line is one broken element."""
    (broken,) = read_elements(text, "f")
    assert isinstance(broken, Broken)
    assert broken.where == "f"
    assert "no JSON" in broken.error


@pytest.mark.parametrize(
    ("element", "word"),
    [
        (5, "neither"),
        (None, "neither"),
        ("text", "neither"),
        ({}, "neither"),
        ({"headers": {}}, "neither"),
        ({"type": "order.paid", "data": {}}, "neither"),
        (STORED | {"body": {"a": 1}}, "body is no text"),
        (STORED | {"body": "\ud800"}, "surrogate"),
        (STORED | {"body_base64": "é"}, "base64"),
        (STORED | {"body_base64": 5}, "body_base64 is no text"),
        (STORED | {"headers": "x: y"}, "pairs"),
        (STORED | {"headers": [["a"]]}, "pairs"),
        (STORED | {"headers": [5]}, "pairs"),
        (BARE | {"data": float("inf")}, "JSON"),
    ],
)
def test_broken_elements(element: object, word: str) -> None:
    """Each says what is wrong with it."""
    assert word in error(element)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"type":' * 100_000, b"9" * 10_000, b"\xff"])
def test_monsters(text: bytes) -> None:
    """Nesting, huge numbers and what is no text are broken, not fatal."""
    (broken,) = read_elements(text, "f")
    assert isinstance(broken, Broken)


@given(st.binary() | st.text(alphabet='{}[],:"\n\\ue1 ').map(str.encode))
def test_nothing_is_raised(data: bytes) -> None:
    """Whatever the bytes, the answer is a list."""
    assert isinstance(read_elements(data, "f"), list)
