"""What a BPF object declares besides code: variables, maps, sched_ext_ops structs, enum values, extern symbols.

How libbpf reads them: parse_btf_map_def(), btf_fixup_datasec() and bpf_object__collect_st_ops_relos() in
tools/lib/bpf/libbpf.c. Where the object's BTF and its ELF symbols say different things the object is refused: nobody
can tell which of them the loader will believe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from verifier.object.btf import ENUMERATOR_LIMIT, Btf, BtfKind, Placed, Type
from verifier.object.elf import ElfObject, Relocation, RelocationType, Section, SectionType, Symbol, malformed
from verifier.object.image import MapInfo, OpsStruct, Variable

VARIABLE_LIMIT = 1 << 14
MAP_LIMIT = 1024
OPS_LIMIT = 64
_MAP_MEMBER_LIMIT = 32
_OPS_MEMBER_LIMIT = 256
_LICENSE_LIMIT_BYTES = 64

DATA_SECTIONS = (".data", ".rodata", ".bss")
"""How the names of those begin that libbpf makes maps of, whatever lies in them."""

MAPS_SECTION = ".maps"
LICENSE_SECTION = "license"
EXTERN_SECTIONS = (".ksyms", ".kconfig")
OPS_SECTIONS = (".struct_ops.link", ".struct_ops", "?.struct_ops.link", "?.struct_ops")
_NOT_DATA = (MAPS_SECTION, LICENSE_SECTION, "version", *EXTERN_SECTIONS, *OPS_SECTIONS)
OPS_TYPE = "sched_ext_ops"
_FLAVOUR = re.compile(r"(.*[^_])___[^_]")
_POINTER_BYTES = 8
_REFERENCE_BYTES = 4
"""What an element of a map of maps or programs takes."""

_SIZED_MEMBERS = {"key": "key_size", "value": "value_size", "values": "value_size"}
_INT_SIGNED = 1 << 24

Placements = Mapping[str, list[Placed]]
"""Section name -> what lies in it according to BTF, by offset."""


@dataclass(frozen=True)
class Extern:
    """A symbol that the kernel or the loader provides.

    Args:
        section: .ksyms or .kconfig.
        is_function: whether it is called, as kfuncs are.
    """

    section: str
    is_function: bool


def essential(name: str) -> str:
    """Return a name without its last ___suffix, as libbpf compares it (bpf_core_essential_name_len())."""
    flavour = _FLAVOUR.match(name)
    return flavour[1] if flavour else name


def read_placements(elf: ElfObject, btf: Btf) -> Placements:
    """Return what lies in each section that BTF describes, at the offsets that the ELF symbols give.

    Raises:
        PolicyError: BTF and ELF contradict each other, or variables overlap.
    """
    symbols = {(symbol.section, symbol.name): symbol for symbol in elf.symbols if symbol.is_global}
    placements: dict[str, list[Placed]] = {}
    count = 0
    for datasec in btf.of_kind(BtfKind.DATASEC):
        count += datasec.length
        if datasec.name in placements or count > VARIABLE_LIMIT:
            raise malformed(f"section {datasec.name!r} is described twice, or more than {VARIABLE_LIMIT} variables")
        placed = btf.placed(datasec)
        if datasec.name not in EXTERN_SECTIONS:
            section = elf.find(datasec.name)
            if section is None or section.executable:
                raise malformed(f"BTF describes variables in section {datasec.name!r}, which has no data")
            placed = _settled(placed, section, symbols, linked=datasec.target != 0)
        placements[datasec.name] = placed
    return placements


def _settled(
    placed: list[Placed], section: Section, symbols: Mapping[tuple[int, str], Symbol], linked: bool
) -> list[Placed]:
    """Return variables by offset; clang leaves the offsets of global ones to their symbols, a linker fills them in."""
    settled = []
    for variable in placed:
        if variable.static:
            settled.append(variable)
            continue
        symbol = symbols.get((section.index, variable.name))
        if linked and symbol is not None and section.name.startswith(DATA_SECTIONS) and symbol.value != variable.offset:
            continue  # a weak one that another source overrides: libbpf's linker moves its symbol, and not its BTF
        if symbol is None or (linked and symbol.value != variable.offset):
            raise malformed(f"BTF puts {variable.name!r} into section {section.name!r}, the symbols do not")
        settled.append(replace(variable, offset=symbol.value))
    settled.sort(key=lambda variable: variable.offset)
    end = 0
    for variable in settled:
        if variable.kind is not BtfKind.VAR or variable.offset < end or variable.offset + variable.size > section.size:
            raise malformed(f"variable {variable.name!r} overlaps another or leaves section {section.name!r}")
        end = variable.offset + variable.size
    return settled


def read_externs(placements: Placements) -> dict[str, Extern]:
    """Return the extern symbols by the name the object spells."""
    externs: dict[str, Extern] = {}
    for section in EXTERN_SECTIONS:
        for placed in placements.get(section, ()):
            if placed.name in externs:
                raise malformed(f"the extern symbol {placed.name!r} is declared twice")
            externs[placed.name] = Extern(section, placed.kind is BtfKind.FUNC)
    return externs


def read_variables(elf: ElfObject, btf: Btf, placements: Placements) -> list[Variable]:
    """Return the variables of all data sections, by offset in each section; names of static ones may repeat."""
    variables = []
    for name, placed in placements.items():
        section = elf.find(name)
        if section is None or name in _NOT_DATA:
            continue
        for variable in placed:
            content = section.content[variable.offset : variable.offset + variable.size]
            volatile = btf.is_volatile(variable.type_id)
            variables.append(Variable(variable.name, name, variable.offset, variable.size, content, volatile))
    return variables


def read_license(elf: ElfObject) -> str:
    """Return the license text, empty if there is none."""
    section = elf.find(LICENSE_SECTION)
    raw = section.content[:_LICENSE_LIMIT_BYTES].partition(b"\0")[0] if section else b""
    return _printable(raw, "the license")


def read_enums(btf: Btf) -> dict[str, int]:
    """Return "enum.CONSTANT" -> value; of a constant with and one without a ___suffix, the latter's value."""
    exact: dict[str, int] = {}
    stripped: dict[str, int] = {}
    count = 0
    for enum in btf.of_kind(BtfKind.ENUM, BtfKind.ENUM64):
        count += enum.length
        if count > ENUMERATOR_LIMIT:
            raise malformed(f"more than {ENUMERATOR_LIMIT} enum constants")
        for constant, value in btf.enumerators(enum):
            name = enum_name(enum.name, constant)
            (exact if name == f"{enum.name}.{constant}" else stripped).setdefault(name, value)
    return stripped | exact


def enum_name(enum: str, constant: str) -> str:
    """Return how bpf_image names an enum constant."""
    return f"{essential(enum)}.{essential(constant)}"


def read_maps(btf: Btf, placements: Placements) -> list[tuple[int, MapInfo]]:
    """Return the declared maps with their offsets in .maps."""
    placed = placements.get(MAPS_SECTION, [])
    if len(placed) > MAP_LIMIT:
        raise malformed(f"{len(placed)} maps; at most {MAP_LIMIT} are accepted")
    if static := [variable.name for variable in placed if variable.static]:
        raise malformed(f"map {static[0]!r} is static, which libbpf refuses")
    return [(variable.offset, _read_map(btf, variable.name, btf.resolve(variable.type_id))) for variable in placed]


def _read_map(btf: Btf, name: str, definition: Type, outer: bool = True) -> MapInfo:
    """Read one map from the struct that declares it; a map of maps holds the inner one's in `values`."""
    if definition.kind is not BtfKind.STRUCT:
        raise malformed(f"map {name!r} is declared by a {definition.kind.name}")
    numbers = dict.fromkeys(("type", "key_size", "value_size", "max_entries", "map_flags", "pinning"), 0)
    inner = None
    for member in btf.members(definition, _MAP_MEMBER_LIMIT):
        if member.name in numbers:
            number = _uint(btf, member.type_id, f"{name}.{member.name}")
        elif member.name in ("key", "value"):
            number = btf.size(_target(btf, member.type_id, BtfKind.PTR, f"{name}.{member.name}").target)
        elif member.name == "values" and outer:
            inner = _read_values(btf, name, member.type_id)
            number = _REFERENCE_BYTES
        elif member.name in ("numa_node", "map_extra"):
            continue
        else:
            raise malformed(f"map {name!r} has a member {member.name!r} that libbpf does not know")
        key = _SIZED_MEMBERS.get(member.name, member.name)
        if numbers[key] not in (0, number):
            raise malformed(f"map {name!r} declares {key} as {numbers[key]} and as {number}")
        numbers[key] = number
    if not numbers["type"]:
        raise malformed(f"map {name!r} has no type")
    return MapInfo(
        name=name,
        type=numbers["type"],
        key_size=numbers["key_size"],
        value_size=numbers["value_size"],
        max_entries=numbers["max_entries"],
        flags=numbers["map_flags"],
        pinning=numbers["pinning"],
        inner=inner,
    )


def _read_values(btf: Btf, name: str, type_id: int) -> MapInfo | None:
    """Read `values`, an array of pointers to inner maps or, in a program array, to programs."""
    element, _count = btf.element(_target(btf, type_id, BtfKind.ARRAY, f"{name}.values"))
    pointed = btf.resolve(_target(btf, element, BtfKind.PTR, f"{name}.values").target)
    return None if pointed.kind is BtfKind.FUNC_PROTO else _read_map(btf, f"{name}.inner", pointed, outer=False)


def _uint(btf: Btf, type_id: int, what: str) -> int:
    """Return the number that __uint() hides in `int (*member)[number]`."""
    array = _target(btf, _target(btf, type_id, BtfKind.PTR, what).target, BtfKind.ARRAY, what)
    return btf.element(array)[1]


def _target(btf: Btf, type_id: int, kind: BtfKind, what: str) -> Type:
    target = btf.resolve(type_id)
    if target.kind is not kind:
        raise malformed(f"{what} is a {target.kind.name}, not a {kind.name}")
    return target


def read_struct_ops(
    elf: ElfObject, btf: Btf, placements: Placements, function_at: Callable[[int, int], str]
) -> tuple[tuple[OpsStruct, ...], tuple[str, ...]]:
    """Return the sched_ext_ops structs, and the names of struct_ops variables of other types, with their types.

    Args:
        function_at: (section index, offset) -> name of the function that begins there; raises PolicyError if none does.
    """
    schedulers: list[OpsStruct] = []
    others: list[str] = []
    for name in OPS_SECTIONS:
        section = elf.find(name)
        placed = placements.get(name, [])
        if section is None:
            continue
        if not placed or section.type != SectionType.PROGBITS or len(placed) + len(schedulers) > OPS_LIMIT:
            raise malformed(
                f"section {name!r} describes {len(placed)} struct_ops variables; 1 to {OPS_LIMIT} are accepted"
            )
        for variable in placed:
            definition = btf.resolve(variable.type_id)
            if essential(definition.name) == OPS_TYPE:
                schedulers.append(_OpsReader(elf, btf, section, function_at).read(variable, definition))
            else:
                others.append(f"{variable.name} ({definition.name})")
    return tuple(schedulers), tuple(others)


class _OpsReader:
    """Reads the sched_ext_ops variables of one section."""

    def __init__(self, elf: ElfObject, btf: Btf, section: Section, function_at: Callable[[int, int], str]) -> None:
        self._btf = btf
        self._section = section
        self._function_at = function_at
        self._relocations = elf.relocations.get(section.index, {})

    def read(self, variable: Placed, definition: Type) -> OpsStruct:
        callbacks: dict[str, str] = {}
        numbers: dict[str, int] = {}
        name = ""
        pointers = set()
        content = self._section.content[variable.offset : variable.offset + variable.size]
        for member in self._btf.members(definition, _OPS_MEMBER_LIMIT):
            kind = self._btf.resolve(member.type_id)
            size = self._btf.size(member.type_id)
            offset, odd_bits = divmod(member.bit_offset, 8)
            raw = content[offset : offset + size]
            if odd_bits or len(raw) != size:
                raise malformed(f"member {member.name!r} of {variable.name!r} leaves its {variable.size} bytes")
            if kind.kind is BtfKind.PTR:
                pointers.add(variable.offset + offset)
                if callback := self._callback(variable.offset + offset, raw, f"{variable.name}.{member.name}"):
                    callbacks[member.name] = callback
            elif kind.kind in (BtfKind.INT, BtfKind.ENUM, BtfKind.ENUM64):
                numbers[member.name] = int.from_bytes(raw, "little", signed=is_signed(kind))
            elif member.name == "name":
                name = _printable(raw.partition(b"\0")[0], f"the name of {variable.name!r}")
        stray = [place for place in self._relocations if 0 <= place - variable.offset < variable.size]
        if not pointers.issuperset(stray):
            raise malformed(f"{variable.name!r} has a relocation where it has no pointer")
        return OpsStruct(variable.name, callbacks, numbers, name, self._section.name.removeprefix("?"))

    def _callback(self, place: int, raw: bytes, what: str) -> str:
        """Return the function that a pointer member names, empty if it is NULL."""
        relocation: Relocation | None = self._relocations.get(place)
        if any(raw) or len(raw) != _POINTER_BYTES:
            raise malformed(f"{what} holds {raw.hex()}, not the address of a function")
        if relocation is None:
            return ""
        if relocation.type != RelocationType.ABS64:
            raise malformed(f"{what} has a relocation of type {relocation.type}")
        return self._function_at(relocation.symbol.section, relocation.symbol.value)


def is_signed(described: Type) -> bool:
    """Whether an INT or an enumeration may be negative."""
    return bool(described.group(0)[0] & _INT_SIGNED) if described.kind is BtfKind.INT else described.flag


def _printable(raw: bytes, what: str) -> str:
    if not raw.isascii() or not (raw.decode("ascii") or " ").isprintable():
        raise malformed(f"{what} holds bytes that are no printable ASCII: {raw[:40]!r}")
    return raw.decode("ascii")
