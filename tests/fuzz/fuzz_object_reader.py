"""Coverage-guided fuzzing of verifier.object_reader; HACKING.md says how to run it. Never part of CI.

Whatever the bytes: a BpfImage that keeps its promises or a PolicyError, soon and in little memory.
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit")]

with atheris.instrument_imports(include=["verifier"]):
    from object_promises import read_or_refuse

TELLING = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    15,
    16,
    23,
    24,
    31,
    32,
    63,
    64,
    127,
    255,
    256,
    4095,
    65535,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
)
"""Numbers at the edges of what the formats count in; their negatives are tried too."""

_SECTION_HEADER_BYTES = 64


def one_input(data: bytes) -> None:
    read_or_refuse(data)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Change a number where the format has one; every other time leave the work to libFuzzer."""
    chance = random.Random(seed)
    if chance.random() < 0.3:
        return bytes(atheris.Mutate(data, max_size))
    changed = bytearray(data)
    for _time in range(chance.choice((1, 1, 1, 2, 4))):
        place, width = _place(changed, chance)
        if place + width <= len(changed):
            (old,) = struct.unpack_from({1: "<B", 2: "<H", 4: "<I", 8: "<Q"}[width], changed, place)
            value = _value(old, width, chance)
            changed[place : place + width] = value.to_bytes(width, "little")
    return bytes(changed[:max_size])


def _value(old: int, width: int, chance: random.Random) -> int:
    how = chance.randrange(4)
    if how == 0:
        value = chance.choice(TELLING)
    elif how == 1:
        value = -chance.choice(TELLING)
    elif how == 2:
        value = old + chance.choice((-24, -16, -8, -4, -2, -1, 1, 2, 4, 8, 16, 24))
    else:
        value = old ^ 1 << chance.randrange(8 * width)
    return value % (1 << 8 * width)


def _place(data: bytearray, chance: random.Random) -> tuple[int, int]:
    """Choose a number: of the file's header, of a section's header, or in a section."""
    (table,) = struct.unpack_from("<Q", data.ljust(64, b"\0"), 40)
    count = (len(data) - table) // _SECTION_HEADER_BYTES if table < len(data) else 0
    if count <= 0 or chance.random() < 0.05:
        return chance.choice(((40, 8), (58, 2), (60, 2), (62, 2), (16, 2), (18, 2), (chance.randrange(64), 1)))
    header = table + chance.randrange(count) * _SECTION_HEADER_BYTES
    if chance.random() < 0.15:
        return header + chance.choice((0, 4, 40, 44)), 4
    if chance.random() < 0.2:
        return header + chance.choice((8, 24, 32, 56)), 8
    offset, size = struct.unpack_from("<QQ", data.ljust(header + 64, b"\0"), header + 24)
    if not 8 <= size <= len(data):
        return chance.randrange(max(len(data), 1)), 1
    width = chance.choice((1, 2, 4, 4, 4, 8))
    return offset % len(data) + chance.randrange(size) // width * width, width


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input, custom_mutator=mutate)
    atheris.Fuzz()
