"""Polar's documents: completed to the fields of today, and held to polar-sdk's own types."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

import adaptix
from polar.base import PolarDeserializationError, deserialize
from polar.v2026_10 import inputs, outputs

NOBODY = "00000000-0000-4000-8000-000000000000"
_STRICT = adaptix.Retort(recipe=[adaptix.name_mapping(extra_in=adaptix.ExtraForbid())])


def complete(partial: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Return *partial* with the fields that *model* wants and it lacks, each as empty as may be."""
    whole = dict(partial)
    for field, hint in _fields(_class(model)):
        if field.name in whole:
            whole[field.name] = _inner(whole[field.name], hint)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            whole[field.name] = _named(field.name, _empty(hint))
    return whole


def problem(document: object, model: Any) -> str | None:
    """Return why polar-sdk could not read an answer, None if it can."""
    try:
        deserialize(document, model)
    except PolarDeserializationError as error:
        return _told(error.error)
    return None


def input_problem(body: object, *models: Any) -> str | None:
    """Return why a request's body is none of polar-sdk's input types, None if it is one of them."""
    problems = []
    for model in models:
        try:
            _STRICT.load(body, model)
        except adaptix.load_error.LoadError as error:
            problems.append(_told(error))
        else:
            return None
    return "; ".join(problems)


def _told(error: BaseException) -> str:
    inner = getattr(error, "exceptions", ())
    return f"{error} {[_told(each) for each in inner]}" if inner else f"{error!r} {error.__dict__}"


@functools.cache
def _fields(model: Any) -> list[tuple[Any, Any]]:
    hints = typing.get_type_hints(model, include_extras=False)
    return [(field, hints[field.name]) for field in dataclasses.fields(model)]


def _class(model: Any) -> Any:
    """Return the dataclass of a model, the first one of a union."""
    return next(each for each in _options(model) if dataclasses.is_dataclass(each))


def _options(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(option for each in typing.get_args(hint) for option in _options(each))
    return (hint,)


def _inner(value: Any, hint: Any) -> Any:
    """Complete what lies inside a field."""
    models = [each for each in _options(hint) if dataclasses.is_dataclass(each)]
    if isinstance(value, dict) and len(models) == 1:
        return complete(value, models[0])
    if isinstance(value, dict) and models and problem(value, hint) is not None:
        fitting = (each for each in map(functools.partial(complete, value), models))
        return next((each for each in fitting if problem(each, hint) is None), value)
    lists = [each for each in _options(hint) if typing.get_origin(each) is list]
    if isinstance(value, list) and lists:
        return [_inner(each, typing.get_args(lists[0])[0]) for each in value]
    return value


def _named(name: str, empty: Any) -> Any:
    """Return what an empty text is called for: a time, an id or nothing."""
    if empty != "":
        return empty
    if name.endswith("_at"):
        return "2026-01-01T00:00:00Z"
    return NOBODY if name == "id" or name.endswith("_id") else ""


def _empty(hint: Any) -> Any:
    options = _options(hint)
    if type(None) in options:
        return None
    option = options[0]
    origin = typing.get_origin(option)
    if origin is typing.Literal:
        return typing.get_args(option)[0]
    if dataclasses.is_dataclass(option):
        return complete({}, option)
    empties: Mapping[Any, Any] = {str: "", int: 0, float: 0.0, bool: False, list: [], dict: {}}
    return empties.get(origin or option, {})


__all__ = ["complete", "input_problem", "inputs", "outputs", "problem"]
