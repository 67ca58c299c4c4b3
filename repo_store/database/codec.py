"""Frozen dataclasses to JSON text and back: integers of any size, bytes and nan survive."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from sqlalchemy.exc import DontWrapMixin

from schedagent.core.errors import RepositoryError

T = TypeVar("T")

_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")


class ContentError(RepositoryError, DontWrapMixin):
    """A value that cannot be stored, or a stored one that cannot be read; SQLAlchemy lets it through as it is."""


def _new_adapter(kind: Any) -> TypeAdapter[Any]:
    # pydantic takes a configuration for a dataclass of the standard library only around it, hence the union.
    return TypeAdapter(kind | None, config=_CONFIG)


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(_new_adapter)


def to_json(kind: type[T], value: T) -> str:
    """Return `value` as canonical JSON text, so that equal values give equal text.

    Raises:
        ContentError: the value cannot be written as JSON (for example text that is not valid Unicode).
    """
    try:
        plain = _adapter(kind).dump_python(value, mode="json")
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        text.encode()  # no database takes lone surrogates, which stand for bytes that are not UTF-8
    except (PydanticSerializationError, ValueError, TypeError) as error:
        raise ContentError(f"cannot store this {_name(kind)}: {error}") from error
    return text


def from_json(kind: type[T], text: str) -> T:
    """Return what `to_json` wrote.

    Raises:
        ContentError: the text is not a `kind`.
    """
    try:
        value: T = _adapter(kind).validate_json(text)
    except ValidationError as error:
        problem = f"{error.error_count()} errors, first: {error.errors()[0]['msg']}"
        raise unreadable(kind, problem) from error
    return value


def unreadable(kind: Any, problem: str) -> ContentError:
    """Return the error for a stored value that is no `kind`."""
    return ContentError(
        f"a stored {_name(kind)} cannot be read: {problem}",
        "it was changed by hand, or written by another version of schedagent",
    )


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))
