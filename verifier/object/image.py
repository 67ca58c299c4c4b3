"""A compiled BPF object as the static checks see it: functions, maps, the ops struct, everything by name.

`verifier.object.reader` fills these types from the ELF file; `verifier.logic.checks` and what it uses read them.
Layouts: include/uapi/linux/{bpf,btf,elf}.h and, for .BTF.ext, tools/lib/bpf/libbpf_internal.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Ref(StrEnum):
    """What an instruction's relocation or immediate points at."""

    KFUNC = "kfunc"
    HELPER = "helper"
    FUNCTION = "function"
    MAP = "map"
    VARIABLE = "variable"
    KSYM = "ksym"
    ENUM = "enum"
    FIELD = "field"
    TYPE = "type"


@dataclass(frozen=True)
class Reference:
    """The named thing an instruction refers to.

    Args:
        kind: what it is.
        name: KFUNC: name without a ___suffix, e.g. scx_bpf_dsq_insert (on a ld_imm64: does it exist?);
            HELPER: e.g. bpf_map_lookup_elem, or "helper 999" if unknown;
            FUNCTION: a function of this object (a call, or a callback's address); MAP: its name;
            VARIABLE: section, e.g. ".rodata"; KSYM: extern kernel symbol; ENUM: "scx_dsq_id_flags.SCX_DSQ_LOCAL";
            FIELD: "task_struct.scx.slice"; TYPE: a type whose existence or size is asked.
        symbol: KFUNC and ENUM: the name as the object spells it, with its ___suffix; VARIABLE: the C variable.
        offset: VARIABLE: byte offset into the section.
        core_kind: for FIELD, ENUM and TYPE: the CO-RE relocation kind (enum bpf_core_relo_kind), else -1.
        weak: KFUNC, KSYM: whether it may be absent.
    """

    kind: Ref
    name: str
    symbol: str = ""
    offset: int = 0
    core_kind: int = -1
    weak: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A place in the source.

    Args:
        text: of the line.
        called_from: the line of the call, if this is in a function that was inlined.
    """

    file: str
    line: int
    text: str = ""
    called_from: Line | None = None

    @property
    def author(self) -> Line:
        """The nearest place that is in no header, of this one and the calls that lead there; else this one."""
        place: Line | None = self
        while place is not None:
            if not place.file.endswith(".h"):
                return place
            place = place.called_from
        return self


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; a 16-byte ld_imm64 is one Instruction, and the slot after it holds none.

    Args:
        slot: 8-byte slot within its function: jump targets count slots.
        opcode, dst, src, offset: as encoded (offset is signed).
        imm: signed 32 bits; for ld_imm64 the unsigned 64-bit value.
        ref: what it refers to, if anything.
        line: the source line it was made from; the nearest one before it.
    """

    slot: int
    opcode: int
    dst: int
    src: int
    offset: int
    imm: int
    ref: Reference | None = None
    line: Line | None = None


@dataclass(frozen=True)
class Function:
    """One function: an entry program or a subprogram.

    Args:
        name: C name.
        section: ELF section, e.g. "struct_ops/fifo_enqueue"; ".text" for subprograms. A leading "?" (libbpf loads it
            only if something asks for it) is dropped.
        instructions: in order.
        parameters: names of its parameters; for entry programs made with BPF_PROG that is ("ctx",).
        is_program: whether the kernel may enter here (a global function in a program section).
    """

    name: str
    section: str
    instructions: tuple[Instruction, ...]
    parameters: tuple[str, ...]
    is_program: bool


@dataclass(frozen=True)
class MapInfo:
    """A map that the object declares; numbers are 0 where it declares none.

    Args:
        type: BPF_MAP_TYPE number.
        pinning: LIBBPF_PIN_* (0: not pinned).
        inner: the inner map's declaration, for maps of maps.
    """

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    pinning: int
    inner: MapInfo | None = None
    line: Line | None = None


@dataclass(frozen=True)
class Variable:
    """A global variable of a data section, with its initial bytes; none if the file holds none (.bss: all zero)."""

    name: str
    section: str
    offset: int
    size: int
    content: bytes
    volatile: bool


@dataclass(frozen=True)
class OpsStruct:
    """A sched_ext_ops variable.

    Args:
        variable: its C name.
        callbacks: member -> name of the function, for the members that are set.
        numbers: integer members by name, e.g. {"flags": 2, "timeout_ms": 5000}, the unset ones as 0.
        name: the .name member.
        section: ".struct_ops.link" or ".struct_ops".
    """

    variable: str
    callbacks: Mapping[str, str]
    numbers: Mapping[str, int]
    name: str
    section: str


@dataclass(frozen=True)
class BpfImage:
    """The whole object.

    Args:
        functions: by name; static functions of one name in two sections get "name@section".
        maps: by name; data sections are no maps here.
        variables: by name.
        ops: every sched_ext_ops the object defines, in order.
        other_struct_ops: names of struct_ops variables of other types, each with its type: "tcp (tcp_congestion_ops)".
        license: content of the license section.
        sections: bytes of each section for variables.
        enums: every enumerator value that the object's own BTF knows: "scx_dsq_id_flags.SCX_DSQ_LOCAL" -> value.
    """

    functions: Mapping[str, Function]
    maps: Mapping[str, MapInfo]
    variables: Mapping[str, Variable]
    ops: tuple[OpsStruct, ...]
    other_struct_ops: tuple[str, ...]
    license: str
    enums: Mapping[str, int]
    sections: Mapping[str, int] = field(default_factory=dict)

    def reached_from(self, name: str) -> frozenset[str]:
        """Return a function and those that it calls or hands to the kernel, directly or not."""
        reached, waiting = {name} & self.functions.keys(), [name]
        while waiting:
            function = self.functions.get(waiting.pop())
            called = {each.ref.name for each in (function.instructions if function else ())
                      if each.ref is not None and each.ref.kind is Ref.FUNCTION}  # fmt: skip
            called &= self.functions.keys()
            waiting += called - reached
            reached |= called
        return frozenset(reached)
