"""Where the probes of a compiled policy go: one at the start of each function, one on each side of each branch.

Every instruction is reached through one of them, so what they saw is the whole of what ran.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from schedagent.core.errors import PolicyError
from verifier.logic.walk.code import FRAME_POINTER, BadCode, Code, prepare
from verifier.object.image import BpfImage, Line

PROBE_LIMIT = 1 << 15
"""Probes of one object: a store reaches so far from the start of their section with its 16-bit offset."""

_ARGUMENTS = range(5, 0, -1)
_ARGUMENT_BITS = 0b111110
_AT_ENTRY = _ARGUMENT_BITS | 1 << FRAME_POINTER
_SCRATCH = (0, 5, 4, 3, 2, 1, 9, 8, 7, 6)
"""Registers that a probe may use if nothing reads what they hold, those first that a call overwrites anyway."""


class Unmeasurable(PolicyError):
    """No copy with probes can be made of this object: what of it runs cannot be known."""


class Side(StrEnum):
    """What a probe watches."""

    ENTRY = "entered"
    TAKEN = "branch taken"
    NOT_TAKEN = "branch not taken"


@dataclass(frozen=True)
class Probe:
    """One place that execution passes.

    Args:
        function: name of the function.
        side: what passing it means.
        index: of the branch among the function's instructions; 0 for the entry.
        target: index of the instruction that is executed next.
        register: overwritten by the probe; nothing reads what it holds there.
    """

    function: str
    side: Side
    index: int
    target: int
    register: int


@dataclass(frozen=True)
class Probes:
    """All probes of an object.

    Args:
        codes: its functions, decoded.
        probes: their place here is their place in the map.
    """

    codes: Mapping[str, Code]
    probes: tuple[Probe, ...]

    def line(self, probe: Probe) -> Line | None:
        """The source line of a probe: that of its branch, or the first of its function."""
        return self.codes[probe.function].ops[probe.index].line

    def of(self, function: str) -> tuple[Probe, ...]:
        """The probes of one function."""
        return tuple(probe for probe in self.probes if probe.function == function)


def place_probes(image: BpfImage) -> Probes:
    """Say where the probes of an object go.

    Raises:
        Unmeasurable: a function cannot be decoded, no register is free at a probe, or there are too many of them.
    """
    codes = _decoded(image)
    probes = [probe for code in codes.values() for probe in _probes_of(code)]
    if len(probes) > PROBE_LIMIT:
        raise Unmeasurable(f"{len(probes)} places of the object would have to be watched; {PROBE_LIMIT} can be")
    return Probes(codes, tuple(probes))


def _decoded(image: BpfImage) -> dict[str, Code]:
    """Decode every function; what a call reads is taken from the called code, never from what BTF says of it.

    A function that reads more than its declared parameters would behave otherwise in the copy.
    """
    try:
        careful = {name: prepare(function, {}) for name, function in image.functions.items()}
        reads = {name: _arguments(code) for name, code in careful.items()}
        return {name: prepare(function, reads) for name, function in image.functions.items()}
    except BadCode as error:
        raise Unmeasurable(f"the object cannot be measured: {error}") from None


def _arguments(code: Code) -> int:
    """The last argument register that a function reads."""
    return next((number for number in _ARGUMENTS if code.live[0] >> number & 1), 0)


def _written(code: Code) -> tuple[int, ...]:
    """For every index, a bit set of the registers that hold something on some path; the kernel lets nobody read others.

    A call leaves a value in r0 and nothing in r1 to r5.
    """
    written = [0] * len(code.ops)
    waiting = [(0, _AT_ENTRY)]
    while waiting:
        index, incoming = waiting.pop()
        if incoming | written[index] == written[index]:
            continue
        written[index] |= incoming
        op, now = code.ops[index], written[index]
        if op.kind == "call":
            now = now & ~_ARGUMENT_BITS | 1
        elif op.kind in ("alu", "load", "imm64"):
            now |= 1 << op.dst
        elif op.kind == "atomic":
            now |= 1 | 1 << op.src
        waiting.extend((after, now) for after in code.next_of(index))
    return tuple(written)


def _probes_of(code: Code) -> list[Probe]:
    held = tuple(live & written for live, written in zip(code.live, _written(code), strict=True))
    probes = [_probe(code, held, Side.ENTRY, 0, 0)]
    for index, op in enumerate(code.ops):
        if op.kind in ("branch", "may_goto"):
            if index + 1 == len(code.ops):
                raise Unmeasurable(f"function {code.name} ends with a branch")
            probes.append(_probe(code, held, Side.TAKEN, index, op.target))
            probes.append(_probe(code, held, Side.NOT_TAKEN, index, index + 1))
    return probes


def _probe(code: Code, held: Sequence[int], side: Side, index: int, target: int) -> Probe:
    free = next((register for register in _SCRATCH if not held[target] >> register & 1), None)
    if free is None:
        line = code.ops[index].line
        raise Unmeasurable(f"no register is free for a probe in {code.name}, line {line.line if line else 0}")
    return Probe(code.name, side, index, target, free)
