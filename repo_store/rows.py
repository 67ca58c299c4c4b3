"""Rows and frozen dataclasses: what has the same name in both is the same thing. A finished step is stored once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from repo_store.database.tables import Base
from schedagent.core.errors import RepositoryError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound=Base)
T = TypeVar("T", bound="DataclassInstance")


def to_row(kind: type[R], value: DataclassInstance, **columns: Any) -> R:
    """Return a row with the fields of a dataclass, and with `columns`."""
    return kind(**{field.name: getattr(value, field.name) for field in fields(value)}, **columns)


def from_row(kind: type[T], row: Base) -> T:
    """Return the dataclass whose fields are among the columns of a row."""
    return kind(**{field.name: getattr(row, field.name) for field in fields(kind)})


def save_once(session: Session, row: Base, what: str, *, except_for: Sequence[str] = ()) -> bool:
    """Store `row` and return True, or return False if an equal one is there (but for the columns `except_for`).

    Raises:
        RepositoryError: another one is there.
    """
    stored = session.get(type(row), identity(row))
    if stored is None:
        session.add(row)
        session.flush()
        return True
    if not _same(stored, row, except_for=except_for):
        raise _changed(what)
    return False


def require_same(stored: Collection[Base], new: Collection[Base], what: str) -> None:
    """Raise RepositoryError unless these are equal."""
    if not equal(stored, new):
        raise _changed(what)


def equal(stored: Collection[Base], new: Collection[Base]) -> bool:
    """Whether these are the same rows, in whatever order."""
    before, now = _by_identity(stored), _by_identity(new)
    alike = len(stored) == len(new) and before.keys() == now.keys()
    return alike and all(_same(before[key], now[key]) for key in now)


def _same(row: Base, other: Base, *, except_for: Sequence[str] = ()) -> bool:
    """Whether two rows of a table are the same to the database."""
    return all(
        column.columns[0].type.compare_values(getattr(row, column.key), getattr(other, column.key))
        for column in inspect(type(row)).column_attrs
        if column.key not in except_for
    )


def identity(row: Base) -> tuple[Any, ...]:
    """Return the primary key of a row."""
    return tuple(inspect(type(row)).primary_key_from_instance(row))


def _by_identity(rows: Iterable[Base]) -> dict[tuple[Any, ...], Base]:
    return {identity(row): row for row in rows}


def _changed(what: str) -> RepositoryError:
    return RepositoryError(f"{what} is stored already, with other content", "a finished step is never overwritten")
