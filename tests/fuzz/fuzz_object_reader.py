"""Coverage-guided fuzzing of verifier.object.reader; HACKING.md says how to run it. Never part of CI.

Whatever the bytes: a BpfImage that keeps its promises or a PolicyError, soon and in little memory.
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["verifier"]):
    from tests.support import elf_parts as elf
    from tests.support.object_reader_contract import read_or_refuse

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
_ENQUEUE = "struct_ops/p_enqueue"


def one_input(data: bytes) -> None:
    read_or_refuse(data)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Change a number where the format has one, leave the work to libFuzzer, or write a new object."""
    chance = random.Random(seed)
    how = chance.random()
    if how < 0.3:
        return bytes(atheris.Mutate(data, max_size))
    if how < 0.4:
        return _written(chance).build()[:max_size]
    changed = bytearray(data)
    for _time in range(chance.choice((1, 1, 1, 2, 4))):
        place, width = _place(changed, chance)
        if place + width <= len(changed):
            (old,) = struct.unpack_from({1: "<B", 2: "<H", 4: "<I", 8: "<Q"}[width], changed, place)
            value = _value(old, width, chance)
            changed[place : place + width] = value.to_bytes(width, "little")
    return bytes(changed[:max_size])


def _written(chance: random.Random) -> elf.Parts:
    """A sound object with some more types, other code and records about it, most of them nonsense."""
    parts = elf.Parts.sound()
    types = parts.btf
    for _type in range(chance.randrange(12)):
        kind = chance.choice((1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 18, 19))
        members = {3: 1, 12: 0, 16: 0}.get(kind, chance.randrange(4))
        each = {1: 1, 3: 3, 4: 3, 5: 3, 6: 2, 13: 2, 14: 1, 19: 3}.get(kind, 0)
        words = [chance.randrange(len(types.types) + 3) for _word in range(each * (1 if kind in (1, 14) else members))]
        vlen = 0 if kind in (1, 3, 14) else members
        types.add(kind, chance.choice(("", "a", "b___c", "sched_ext_ops")), chance.randrange(70), words, vlen)
    last = len(types.types)
    types.datasec(".more", 0, [(types.variable("more", last), 0, 8)])
    parts.sections[".more"] = elf.Part(content=bytes(16))
    parts.symbols.append(elf.Named("more", ".more", chance.choice((0, 8)), 8, elf.OBJECT))
    code, relocations = b"", []
    for _number in range(chance.randrange(1, 12)):
        instruction, symbol, kind = _instruction(chance)
        if symbol:
            relocations.append((len(code), symbol, kind))
        code += instruction
    code += elf.EXIT
    parts.sections[_ENQUEUE].content = code
    parts.symbol("p_enqueue").size = len(code)
    parts.relocations[_ENQUEUE] = relocations
    parts.sections[".BTF.ext"] = elf.Part(content=_records(types, len(code), last, chance))
    return parts


def _instruction(chance: random.Random) -> tuple[bytes, str, int]:
    """One instruction, the symbol that it refers to if it does, and the type of that relocation."""
    number = chance.choice(TELLING)
    known = ("table", "slice_us", "count", "more", "policy", "other", "scx_bpf_now___sa", "p_init")
    return chance.choice(
        (
            (elf.ld_imm64(value=number), "", 0),
            (elf.ld_imm64(value=chance.choice((0, 0, 0, number))), chance.choice(known), elf.R_LD_IMM64),
            (elf.insn(0x85, imm=chance.choice((1, 999, -1))), "", 0),
            (elf.CALL_SYMBOL, chance.choice(("other", "scx_bpf_now___sa", "p_init")), elf.R_CALL),
            (elf.insn(chance.choice((0x05, 0x06, 0x15, 0xE5)), offset=chance.choice((0, 0, 1, -1, -2))), "", 0),
            (elf.insn(chance.choice((0x61, 0x79, 0x63, 0x07, 0xBF)), imm=number - (1 << 31)), "", 0),
            (elf.insn(0xB7), "", 0),
        )
    )


def _records(types: elf.BtfParts, size: int, last: int, chance: random.Random) -> bytes:
    name, places = types.string(_ENQUEUE), range(0, size, 8)
    access = [types.string(":".join(str(chance.randrange(2)) for _step in range(length))) for length in range(1, 5)]
    row = chance.choice(places), chance.randrange(last + 1), chance.choice(access), chance.randrange(13)
    return elf.ext(
        elf.records(8, [(name, [(0, chance.choice((0, 0, 0, chance.randrange(last + 1))))])]),
        elf.records(16, [(name, [(place, name, access[1], chance.randrange(1 << 32)) for place in places])]),
        elf.records(16, [(name, [row])]),
    )


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
