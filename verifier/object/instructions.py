"""BPF instructions out of the bytes of a function, each with what it refers to and the source line it was made from.

Encoding: Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from verifier.object.elf import malformed
from verifier.object.image import Instruction, Line, Reference

SLOT_BYTES = 8
LD_IMM64 = 0x18
CALL = 0x85
PSEUDO_CALL = 1
"""src of a call to a function of this object."""

_SLOT = struct.Struct("<BBhi")
_CLASS_JMP, _CLASS_JMP32 = 5, 6
_OP_CALL, _OP_EXIT, _OP_JA = 8, 9, 0
_GOTO_LONG = 0x06
"""JMP32 | JA: jumps by imm instead of offset."""

_GOTO_REGISTER = 0x0D

Resolver = Callable[[int, int, int, int], Reference | None]
"""(byte offset in the section, opcode, src, imm) -> what the instruction refers to."""


def decode(code: bytes, base: int, resolve: Resolver, line_at: Callable[[int], Line | None]) -> tuple[Instruction, ...]:
    """Decode the instructions of one function.

    Args:
        code: its bytes.
        base: where it begins in its section, in bytes.
        resolve: returns what the instruction at an offset of the section refers to.
        line_at: returns the source line that begins at an offset of the section, None where none does.

    Raises:
        PolicyError: an instruction is cut short, or a jump goes to no instruction of this function.
    """
    instructions: list[Instruction] = []
    line: Line | None = None
    for slot, opcode, registers, offset, imm in _slots(code):
        place = base + slot * SLOT_BYTES
        line = line_at(place) or line
        dst, src = registers & 0xF, registers >> 4
        ref = resolve(place, opcode, src, imm & 0xFFFFFFFF if opcode == LD_IMM64 else imm)
        instructions.append(Instruction(slot, opcode, dst, src, offset, imm, ref, line))
    _check_jumps(instructions)
    return tuple(instructions)


def _slots(code: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (slot, opcode, registers, offset, imm); the two slots of a ld_imm64 as one."""
    slots = enumerate(_SLOT.iter_unpack(code))
    for slot, (opcode, registers, offset, imm) in slots:
        if opcode != LD_IMM64:
            yield slot, opcode, registers, offset, imm
            continue
        _index, second = next(slots, (0, None))
        if second is None or second[:3] != (0, 0, 0) or offset:
            raise malformed(f"the 16-byte instruction at slot {slot} is cut short or damaged")
        yield slot, opcode, registers, offset, imm & 0xFFFFFFFF | (second[3] & 0xFFFFFFFF) << 32


def _check_jumps(instructions: list[Instruction]) -> None:
    """Every jump must end at an instruction of this function."""
    slots = {instruction.slot for instruction in instructions}
    for instruction in instructions:
        distance = jump_distance(instruction)
        if distance is not None and instruction.slot + 1 + distance not in slots:
            raise malformed(f"slot {instruction.slot} jumps {distance} slots, to no instruction of its function")
        if instruction.opcode == _GOTO_REGISTER:
            raise malformed(f"slot {instruction.slot} jumps to an address in a register")


def jump_distance(instruction: Instruction) -> int | None:
    """Return how many slots a jump skips when it is taken; None for what is no jump (call and exit are none)."""
    operation = instruction.opcode >> 4
    if instruction.opcode & 7 not in (_CLASS_JMP, _CLASS_JMP32) or operation in (_OP_CALL, _OP_EXIT):
        return None
    return instruction.imm if instruction.opcode == _GOTO_LONG else instruction.offset
