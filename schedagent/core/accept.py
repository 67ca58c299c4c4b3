"""Checks of single fields that come from outside: a number, a choice, a line, a path, the name of a cgroup. Pure.

A check returns the value as what it is accepted as, and raises ValueError whose text says what is accepted. No type is
converted but a whole number to a float where a number is wanted, and True is no number. Whoever reads a table of fields
adds where the value stood.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeGuard, TypeVar

T = TypeVar("T")
Word = TypeVar("Word", bound=str)
Check = Callable[[object], T]

C_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
SHA256 = re.compile(r"[0-9a-f]{64}")
LONGEST_CGROUP = 4000
"""PATH_MAX is 4096, and the mount point and a file's name come on top of a cgroup's path."""
LONGEST_SOCKET_PATH = 107  # unix(7): sun_path, with its NUL

_CGROUP = re.compile(r"(/(?!\.{1,2}(/|\Z))[ -.0-~]{1,255}){1,64}")


def is_whole(value: object, minimum: int, maximum: int) -> TypeGuard[int]:
    """Whether it is a whole number within bounds, both included."""
    return type(value) is int and minimum <= value <= maximum


def is_cgroup(text: str) -> bool:
    """Whether a cgroup may be called so: a path below the root of cgroups, such as /build.slice; the root is none.

    Printable ASCII (systemd escapes everything else), components of at most 255 characters that are not empty, `.` or
    `..`, at most 64 of them.
    """
    return len(text) <= LONGEST_CGROUP and _CGROUP.fullmatch(text) is not None


def whole(minimum: int, maximum: int) -> Check[int]:
    """Accept a whole number within bounds, both included."""

    def check(value: object) -> int:
        if is_whole(value, minimum, maximum):
            return value
        raise ValueError(f"a whole number from {minimum} to {maximum}")

    return check


def number(minimum: float, maximum: float, unit: str = "") -> Check[float]:
    """Accept a finite number within bounds, both included.

    Args:
        unit: what it counts, for the message, such as "seconds".
    """

    def check(value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value <= maximum:  # no NaN is
            return float(value)
        raise ValueError(f"{f'{unit},' if unit else 'a number'} from {minimum:g} to {maximum:g}")

    return check


def flag(value: object) -> bool:
    """Accept a truth value."""
    if type(value) is bool:
        return value
    raise ValueError("true or false")


def one_of(words: Iterable[Word]) -> Check[Word]:
    """Accept one of some words, such as the members of a StrEnum."""
    known = {str(word): word for word in words}

    def check(value: object) -> Word:
        if type(value) is str and value in known:
            return known[value]
        raise ValueError(", ".join(known))

    return check


def matching(pattern: re.Pattern[str], accepted: str) -> Check[str]:
    """Accept a text that matches as a whole."""

    def check(value: object) -> str:
        if type(value) is str and pattern.fullmatch(value):
            return value
        raise ValueError(accepted)

    return check


def line(value: object) -> str:
    """Accept a text of one line that is not blank."""
    if isinstance(value, str) and value.strip() and value.isprintable():
        return value
    raise ValueError("a line of text")


def cgroup(value: object) -> str:
    """Accept the path of a cgroup, see `is_cgroup`."""
    if isinstance(value, str) and is_cgroup(value):
        return value
    raise ValueError("the path of a cgroup, such as /system.slice/build.service")


def or_empty(check: Check[str]) -> Check[str]:
    """Accept an empty text, too."""
    return lambda value: "" if value == "" and isinstance(value, str) else check(value)


def list_of(check: Check[T], accepted: str) -> Check[tuple[T, ...]]:
    """Accept a list of what `check` accepts.

    Args:
        accepted: what the list holds, for the message, such as "cgroups".
    """

    def check_all(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ValueError(f"a list of {accepted}")
        return tuple(map(check, value))

    return check_all


def absolute_path(value: object) -> Path:
    """Accept an absolute path."""
    if isinstance(value, str) and value.startswith("/") and "\0" not in value:
        return Path(value)
    raise ValueError("an absolute path")


def socket_path(value: object) -> Path:
    """Accept an absolute path that a unix socket can have."""
    if isinstance(value, str) and value.startswith("/") and len(os.fsencode(value)) <= LONGEST_SOCKET_PATH:
        return absolute_path(value)
    raise ValueError(f"the absolute path of a unix socket, at most {LONGEST_SOCKET_PATH} bytes long")
