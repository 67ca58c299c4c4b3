"""What a scheduler's own loader sets in its object before the kernel gets it, read from a TOML file.

    rodata = load_rodata(Path("scx_simple.toml"))

    [rodata]                    # const volatile variables: numbers, true and false, texts, lists of numbers
    fifo_sched = true
    [ops]                       # members of the ops struct; flags as a number, or by their names
    flags = ["SCX_OPS_ENQ_EXITING"]
    timeout_ms = 5000

The values become part of the object (verifier.object.rodata), so its digest, and with that every report and token, is
of what was assumed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schedagent.core.accept import C_NAME
from schedagent.core.errors import UsageError

LARGEST_FILE_BYTES = 64 << 10
MOST_VALUES = 256
MOST_ELEMENTS = 4096
OPS = ("flags", "timeout_ms", "dispatch_max_batch", "exit_dump_len")
"""Members of the ops struct that loaders set; what a member may be is rule 27's, as if the source had set it."""

Value = int | str | tuple[int, ...]
_NUMBERS = range(-(1 << 63), 1 << 64)
_EXAMPLE = "for example: [rodata] slice_ns = 5000000, [ops] timeout_ms = 5000"


@dataclass(frozen=True)
class Rodata:
    """What is assumed of a loader.

    Args:
        constants: `const volatile` variables and their values, by name.
        ops: members of the ops struct, of OPS, by name; of flags the bits that are set are added.
        flags: names of flags that are added, in order; `ops` has no flags then.
    """

    constants: tuple[tuple[str, Value], ...] = ()
    ops: tuple[tuple[str, int], ...] = ()
    flags: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.constants or self.ops or self.flags)

    @property
    def table(self) -> dict[str, dict[str, Any]]:
        """What `read_rodata` makes it of."""
        flags = {"flags": list(self.flags)} if self.flags else {}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in self.constants}
        return {"rodata": values, "ops": {**dict(self.ops), **flags}} if self else {}

    @property
    def summary(self) -> str:
        """All of it on one line: 'fifo_sched = 1, flags = SCX_OPS_ENQ_EXITING'."""
        numbers = [f"{name} = {_shown(value)}" for name, value in (*self.constants, *self.ops)]
        return ", ".join([*numbers, f"flags = {' | '.join(self.flags)}"] if self.flags else numbers)


NOTHING_SET = Rodata()


def load_rodata(path: Path) -> Rodata:
    """Read a file; raise UsageError that names the key which cannot be used, or why the file cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--rodata {path} cannot be read: {error.strerror}") from None
    if len(text) > LARGEST_FILE_BYTES:
        raise UsageError(f"--rodata {path} is larger than {LARGEST_FILE_BYTES} bytes")
    try:
        return read_rodata(tomllib.loads(text.decode()), path.name)
    except ValueError as error:
        raise UsageError(f"--rodata {path} is not valid TOML: {error}", _EXAMPLE) from None


def read_rodata(table: Mapping[str, Any], where: str) -> Rodata:
    """Return what a table holds; raise UsageError that names the key which cannot be used.

    Args:
        where: what holds the table, for messages.
    """
    sections = {name: table.get(name, {}) for name in ("rodata", "ops")}
    unknown = [name for name in table if name not in sections]
    if unknown or not all(isinstance(section, dict) for section in sections.values()):
        raise UsageError(
            f"{where}: {unknown[0] if unknown else 'rodata and ops'} must be one of [rodata], [ops]", _EXAMPLE
        )
    constants, members = sections["rodata"], dict(sections["ops"])
    if len(constants) > MOST_VALUES:
        raise UsageError(f"{where}: {len(constants)} values; at most {MOST_VALUES} are accepted")
    for name in constants:
        if not C_NAME.fullmatch(name):
            raise UsageError(f"{where}: {name[:60]!r} cannot be the name of a variable")
    for name in members:
        if name not in OPS:
            raise UsageError(f"{where}: [ops] {name[:60]!r} is not the loader's to set", f"accepted: {', '.join(OPS)}")
    flags = members.pop("flags") if isinstance(members.get("flags"), list) else []
    if not all(isinstance(flag, str) and C_NAME.fullmatch(flag) for flag in flags):
        raise UsageError(f"{where}: [ops] flags must be a number or names", 'flags = ["SCX_OPS_ENQ_LAST"]')
    return Rodata(
        tuple((name, _value(value, f"{where}: {name}")) for name, value in sorted(constants.items())),
        tuple((name, _number(value, f"{where}: [ops] {name}")) for name, value in sorted(members.items())),
        tuple(flags),
    )


def _value(value: object, what: str) -> Value:
    if isinstance(value, str) and len(value.encode()) < MOST_ELEMENTS and value.isprintable():
        return value
    if isinstance(value, list) and len(value) <= MOST_ELEMENTS:
        return tuple(_number(each, what) for each in value)
    return _number(value, what)


def _number(value: object, what: str) -> int:
    if not isinstance(value, int) or value not in _NUMBERS:
        raise UsageError(f"{what} must be a whole number of 64 bits, a text or a list of such numbers", _EXAMPLE)
    return int(value)


def _shown(value: Value) -> str:
    if isinstance(value, tuple):
        more = f", ... ({len(value)})" if len(value) > 4 else ""
        return f"[{', '.join(map(str, value[:4]))}{more}]"
    return repr(value[:40]) if isinstance(value, str) else str(value)
