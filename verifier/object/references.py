"""What the instructions of a BPF object refer to: kfuncs, helpers, functions, maps, variables, types by CO-RE.

How libbpf resolves each: bpf_program__record_reloc() and bpf_object__reloc_code() in tools/lib/bpf/libbpf.c,
bpf_core_parse_spec() in tools/lib/bpf/relo_core.c.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from enum import IntEnum

from schedagent.core.errors import PolicyError
from verifier.object import declarations
from verifier.object.btf import Btf, BtfKind, Type
from verifier.object.btf_ext import NO_RECORDS, BtfExt
from verifier.object.declarations import essential
from verifier.object.elf import ElfObject, Relocation, RelocationType, Section, Symbol, malformed
from verifier.object.helper_names import helper_name
from verifier.object.image import Ref, Reference, Variable
from verifier.object.instructions import CALL, LD_IMM64, PSEUDO_CALL, SLOT_BYTES, Resolver

_ACCESS_LIMIT = 64
"""Most steps of an access string; BPF_CORE_SPEC_MAX_LEN in relo_core.h."""

_ACCESS_STRING_BYTES = 512


class CoreKind(IntEnum):
    """enum bpf_core_relo_kind."""

    FIELD_BYTE_OFFSET = 0
    FIELD_BYTE_SIZE = 1
    FIELD_EXISTS = 2
    FIELD_SIGNED = 3
    FIELD_LSHIFT_U64 = 4
    FIELD_RSHIFT_U64 = 5
    TYPE_ID_LOCAL = 6
    TYPE_ID_TARGET = 7
    TYPE_EXISTS = 8
    TYPE_SIZE = 9
    ENUMVAL_EXISTS = 10
    ENUMVAL_VALUE = 11
    TYPE_MATCHES = 12


class References:
    """Resolves the references of one object.

    Args:
        functions: (section index, offset) -> name of the function that begins there.

    Raises:
        PolicyError: the maps, variables or extern symbols of the object contradict themselves.
    """

    def __init__(
        self,
        elf: ElfObject,
        btf: Btf,
        ext: BtfExt,
        placements: declarations.Placements,
        functions: Mapping[tuple[int, int], str],
    ) -> None:
        self._elf = elf
        self._btf = btf
        self._ext = ext
        self._functions = functions
        self._externs = declarations.read_externs(placements)
        self.maps = declarations.read_maps(btf, placements)
        self._map_at = {offset: info.name for offset, info in self.maps}
        variables = declarations.read_variables(elf, btf, placements)
        self.variables = _named(variables)
        self._variables_of: dict[str, list[Variable]] = defaultdict(list)
        for variable in variables:
            self._variables_of[variable.section].append(variable)
        self._core_known: dict[tuple[int, ...], Reference] = {}

    def function_at(self, section: int, offset: int) -> str:
        """Return the function that begins at an offset of a section; raise PolicyError if none does."""
        name = self._functions.get((section, offset))
        if name is None:
            raise malformed(f"byte {offset} of section {section} is taken for a function, but none begins there")
        return name

    def resolver(self, section: Section) -> Resolver:
        """Return what resolves the references of the instructions of one section."""
        relocations = self._elf.relocations.get(section.index, {})
        core = self._ext.relocations.get(section.name, NO_RECORDS)

        def resolve(place: int, opcode: int, src: int, imm: int) -> Reference | None:
            relocation, record = relocations.get(place), core.get(place)
            if record and (relocation or opcode == CALL):
                raise malformed(f"byte {place} of {section.name!r} has a CO-RE relocation where it cannot have one")
            if opcode == CALL:
                return self._call(section, place, src, imm, relocation)
            if record:
                return self._core(record)
            if relocation:
                return self._load(relocation, opcode, imm)
            if opcode == LD_IMM64 and src:
                raise malformed(f"byte {place} of {section.name!r} loads an address that only a loader can know")
            return None

        return resolve

    def check_all_used(self, section: Section, function: Symbol, places: set[int]) -> None:
        """Refuse relocations of a function that lie beside its instructions, in the second half of a ld_imm64."""
        relocations = self._elf.relocations.get(section.index, {})
        core = self._ext.relocations.get(section.name, NO_RECORDS)
        for place in range(function.value, function.value + function.size, SLOT_BYTES):
            if place not in places and (place in relocations or core.get(place)):
                raise malformed(f"byte {place} of {section.name!r} has a relocation, but no instruction")

    def _call(self, section: Section, place: int, src: int, imm: int, relocation: Relocation | None) -> Reference:
        """Resolve a call: of a helper by number, of a function of this object, of a kfunc by relocation."""
        if relocation is None:
            if src == 0:
                return Reference(Ref.HELPER, helper_name(imm))
            if src != PSEUDO_CALL:
                raise malformed(f"byte {place} of {section.name!r} calls a kernel function that it does not name")
            target = place + (imm + 1) * SLOT_BYTES
            return Reference(Ref.FUNCTION, self.function_at(section.index, target))
        symbol = relocation.symbol
        if relocation.type != RelocationType.CALL or src != PSEUDO_CALL:
            raise malformed(f"the call of {symbol.name!r} has a relocation of type {relocation.type}")
        if symbol.section == 0:
            return self._extern(symbol)
        return Reference(Ref.FUNCTION, self.function_at(symbol.section, symbol.value + (imm + 1) * SLOT_BYTES))

    def _load(self, relocation: Relocation, opcode: int, imm: int) -> Reference:
        """Resolve the address in a ld_imm64; its low 32 bits are added to the symbol's."""
        symbol = relocation.symbol
        if relocation.type != RelocationType.LD_IMM64 or opcode != LD_IMM64:
            raise malformed(f"a relocation of type {relocation.type} against {symbol.name!r}, opcode {opcode:#x}")
        if symbol.section == 0:
            return self._extern(symbol)
        if symbol.section >= len(self._elf.sections):
            raise malformed(f"symbol {symbol.name!r} lies in no section")
        section = self._elf.sections[symbol.section]
        offset = symbol.value + imm
        if section.executable:
            return Reference(Ref.FUNCTION, self.function_at(section.index, offset))
        if section.name == declarations.MAPS_SECTION:
            if offset not in self._map_at or imm:
                raise malformed(f"byte {offset} of .maps is taken for a map, but none begins there")
            return Reference(Ref.MAP, self._map_at[offset])
        return Reference(Ref.VARIABLE, section.name, self._variable_over(section.name, offset), offset)

    def _variable_over(self, section: str, offset: int) -> str:
        """Return the variable that an offset of a section lies in, empty if it is none that BTF knows."""
        variables = self._variables_of.get(section, [])
        place = bisect_right(variables, offset, key=lambda variable: variable.offset)
        last = variables[place - 1] if place else None
        return last.name if last and offset < last.offset + last.size else ""

    def _extern(self, symbol: Symbol) -> Reference:
        extern = self._externs.get(symbol.name)
        if extern is None:
            raise PolicyError(
                f"{symbol.name}() is defined in none of the sources", "give the one that defines it, too: --with FILE"
            )
        if extern.is_function:
            return Reference(Ref.KFUNC, essential(symbol.name), symbol.name, weak=symbol.weak)
        if extern.section == ".kconfig":
            return Reference(Ref.VARIABLE, extern.section, symbol.name)
        return Reference(Ref.KSYM, symbol.name, symbol.name, weak=symbol.weak)

    def _core(self, record: tuple[int, ...]) -> Reference:
        """Resolve a CO-RE relocation by its root type, access string and kind."""
        if record not in self._core_known:
            self._core_known[record] = self._read_core(*record)
        return self._core_known[record]

    def _read_core(self, type_id: int, access_offset: int, kind: int) -> Reference:
        text = self._btf.text(access_offset, _ACCESS_STRING_BYTES)
        steps = text.split(":")
        if kind > max(CoreKind) or len(steps) > _ACCESS_LIMIT or not all(_is_index(step) for step in steps):
            raise malformed(f"a CO-RE relocation of kind {kind} with the access string {text[:40]!r}")
        indexes = [int(step) for step in steps]
        name = essential(self._btf.name_of(type_id))
        if kind in (CoreKind.ENUMVAL_EXISTS, CoreKind.ENUMVAL_VALUE):
            enum = self._btf.resolve(type_id)
            constant = self._constant(enum, indexes)
            return Reference(Ref.ENUM, declarations.enum_name(enum.name or name, constant), constant, core_kind=kind)
        if CoreKind.TYPE_ID_LOCAL <= kind <= CoreKind.TYPE_SIZE or kind == CoreKind.TYPE_MATCHES:
            return Reference(Ref.TYPE, name, core_kind=kind)
        return Reference(Ref.FIELD, name + self._path(type_id, indexes[1:]), core_kind=kind)

    def _constant(self, enum: Type, indexes: list[int]) -> str:
        if enum.kind not in (BtfKind.ENUM, BtfKind.ENUM64) or len(indexes) != 1 or indexes[0] >= enum.length:
            raise malformed(f"constant {indexes} of type {enum.id}, a {enum.kind.name} with {enum.length} values")
        return self._btf.name(enum.group(indexes[0])[0])

    def _path(self, type_id: int, indexes: list[int]) -> str:
        """Spell the way from a type to a member: ".scx.slice", ".cpus[3]"; unnamed members and [0] leave no trace."""
        path = ""
        for index in indexes:
            container = self._btf.resolve(type_id)
            if container.kind is BtfKind.ARRAY:
                type_id, _length = self._btf.element(container)
                path += f"[{index}]" if index else ""
            else:
                member = self._btf.member(container, index)
                type_id = member.type_id
                path += f".{member.name}" if member.name else ""
        return path


def _is_index(step: str) -> bool:
    return step.isascii() and step.isdigit() and len(step) <= 9


def _named(variables: list[Variable]) -> dict[str, Variable]:
    """Return variables by name; a static one whose name is taken gets its place."""
    named: dict[str, Variable] = {}
    for variable in variables:
        taken = variable.name in named
        named[f"{variable.name}@{variable.section}+{variable.offset}" if taken else variable.name] = variable
    return named
