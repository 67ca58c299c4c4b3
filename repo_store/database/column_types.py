"""How our types stand in columns: values as JSON text, enums as the text of their value, nan as NULL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import Dialect, Double, Text
from sqlalchemy.types import TypeDecorator

from repo_store.database.codec import from_json, to_json, unreadable

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class JsonText(TypeDecorator[T]):
    """A value as canonical JSON text (see `codec`); two values are the same if they are equal, or their text is.

    Args:
        kind: what is stored: a frozen dataclass, a tuple, a dict, or an integer of any size.
    """

    impl = Text
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: T | None, dialect: Dialect | None) -> str | None:
        if value is None:
            return None
        return to_json(self.kind, dict(value) if isinstance(value, Mapping) else value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> T | None:
        return None if value is None else from_json(self.kind, value)

    def compare_values(self, x: Any, y: Any) -> bool:
        # The text tells what == does not: a nan is the same as a nan, a list in JSON values as a tuple.
        return bool(x == y) or self.process_bind_param(x, None) == self.process_bind_param(y, None)


class EnumText(TypeDecorator[E]):
    """A member of an enum as its value. Not SQLAlchemy's Enum, which is a VARCHAR as long as the longest value: the
    columns are of unlimited length, so that a new member needs no migration.

    Args:
        kind: the enum.
    """

    impl = Text
    cache_ok = True

    def __init__(self, kind: type[E]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: E | None, dialect: Dialect) -> str | None:
        return None if value is None else value.value

    def process_result_value(self, value: str | None, dialect: Dialect) -> E | None:
        try:
            return None if value is None else self.kind(value)
        except ValueError as error:
            raise unreadable(self.kind, str(error)) from None


class NanAsNull(TypeDecorator[float]):
    """A number whose nan is NULL, because SQLite cannot hold it."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        return None if value is None or math.isnan(value) else value

    def process_result_value(self, value: float | None, dialect: Dialect) -> float:
        return math.nan if value is None else value

    def compare_values(self, x: float, y: float) -> bool:
        return x == y or (math.isnan(x) and math.isnan(y))
