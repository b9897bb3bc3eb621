"""The check against an OpenAPI document can fail: on what is sent, and on what is answered."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.contract import check, tour
from tests.stand_in.server import Exchange

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Small", "version": "1"},
    "servers": [{"url": "https://api.example"}],
    "components": {
        "schemas": {
            "Metadata": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 9}}
        }
    },
    "paths": {
        "/v1/things/{id}": {
            "get": {
                "parameters": [
                    {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
                    {
                        "name": "metadata",
                        "in": "query",
                        "style": "deepObject",
                        "schema": {"$ref": "#/components/schemas/Metadata"},
                    },
                    {
                        "name": "limit",
                        "in": "query",
                        "schema": {"anyOf": [{"type": "integer", "maximum": 100}, {"type": "null"}]},
                    },
                ],
                "responses": {
                    "200": {
                        "description": "A thing",
                        "content": {
                            "application/json": {
                                "schema": {
                                    "type": "object",
                                    "required": ["id"],
                                    "properties": {"id": {"type": "string"}},
                                }
                            }
                        },
                    }
                },
            }
        }
    },
}


def exchange(target: str = "/v1/things/a?limit=5", answer: bytes = b'{"id": "a"}') -> Exchange:
    return Exchange(
        method="GET",
        target=target,
        request_headers={"authorization": "Bearer x"},
        request_body=b"",
        status=200,
        response_body=answer,
    )


def test_what_fits_is_no_problem() -> None:
    """A request and an answer as the document has them."""
    for target in ("/v1/things/a?limit=5", "/v1/things/a?metadata[user_id]=ann&limit=5"):
        assert check([exchange(target)], copy.deepcopy(DOCUMENT)) == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (exchange("/v1/things/a?limit=500"), "request"),
        (exchange("/v1/things/a?colour=red"), "unknown parameters ['colour']"),
        (exchange("/v1/things/a?metadata=x"), "metadata is no metadata[key]"),
        (exchange("/v1/things/a?metadata[user][id]=x"), "is no metadata[key]"),
        (
            exchange("/v1/things/a?metadata[user]=longer-than-nine"),
            "metadata: user: 'longer-than-nine' is too",
        ),
        (exchange("/v1/nothings/a"), "request"),
        (exchange(answer=b'{"name": "a"}'), "answer: : 'id' is a required property"),
        (exchange(answer=b'{"id": 5}'), "answer: id: 5 is not of type 'string'"),
    ],
)
def test_what_does_not_is_told(wrong: Exchange, told: str) -> None:
    """Each with where it is and what is wrong."""
    problems = check([wrong], copy.deepcopy(DOCUMENT))
    assert any(told in problem for problem in problems), problems


def test_the_tour_asks_what_sync_asks_and_is_taken() -> None:
    """Every list with the filters that sync uses, everything that is made, and no refusal on the way."""
    exchanges, refused = tour()
    assert refused == []
    asked = {(each.method, each.target.partition("?")[0]) for each in exchanges}
    assert {path for method, path in asked if method == "POST"} == {
        "/v1/customers/",
        "/v1/checkouts/",
        "/v1/customer-sessions/",
        "/v1/webhooks/endpoints",
    }
    filters = " ".join(each.target for each in exchanges)
    for each in (
        "metadata%5Buser_id%5D=",
        "canceled_at_after=",
        "started_after=",
        "created_after=",
        "order_id=",
    ):
        assert each in filters
