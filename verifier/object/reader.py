"""From the bytes of a compiled BPF object to a `BpfImage`: everything by name.

    elf_reader ─► btf_reader, btf_ext ─► declarations, references ─► instructions ─► BpfImage

The bytes may come from anybody. Whatever they hold, the answer is a BpfImage or a PolicyError, after a time and with
memory that the limits in these modules bound. Nothing is loaded, and no other program or library sees the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from schedagent.core.policies.artifact import InlinedCall
from verifier.object import declarations
from verifier.object.btf import Btf, BtfKind, read_btf
from verifier.object.btf_ext import NO_RECORDS, BtfExt, read_btf_ext
from verifier.object.elf import ElfObject, Section, Symbol, SymbolType, malformed, read_elf
from verifier.object.image import BpfImage, Function, Instruction, Line
from verifier.object.instructions import SLOT_BYTES, decode
from verifier.object.references import References

SLOT_LIMIT = 1 << 17
"""Most instruction slots of one object; scx_lavd, the largest scheduler around, has about 40 000."""

FUNCTION_LIMIT = 4096
_MOST_PLACES = 4 * SLOT_LIMIT
_PARAMETER_LIMIT = 64
_TEXT_BYTES = 256
_COLUMN_BITS = 10


def read_object(object_bytes: bytes, inlined: Sequence[InlinedCall] = ()) -> BpfImage:
    """Read a compiled BPF object: what clang writes, or what `bpftool gen object` makes of it.

    Args:
        object_bytes: the whole file, at most 16 MiB.
        inlined: the calls that were inlined, the outer ones before those within them.

    Raises:
        PolicyError: it is no BPF object with BTF, is malformed in any way, or exceeds a limit.
    """
    elf = read_elf(object_bytes)
    types = elf.find(".BTF")
    if types is None:
        raise malformed("it has no BTF, the types that a scheduler cannot be loaded without")
    btf = read_btf(types.content)
    ext_section = elf.find(".BTF.ext")
    ext = read_btf_ext(ext_section.content if ext_section else types.content[:0], btf)
    placements = declarations.read_placements(elf, btf)
    symbols = function_symbols(elf)
    references = References(elf, btf, ext, placements, _places(symbols))
    ops, others = declarations.read_struct_ops(elf, btf, placements, references.function_at)
    lines = _Lines(btf, ext)
    functions = (_function(elf, btf, ext, name, symbol, references, lines) for name, symbol in symbols.items())
    by_function: dict[str, list[InlinedCall]] = {}
    for call in inlined:
        by_function.setdefault(call.function, []).append(call)
    return BpfImage(
        functions={each.name: _with_calls(each, by_function.get(each.name, ())) for each in functions},
        maps={info.name: info for _offset, info in references.maps},
        variables=references.variables,
        ops=ops,
        other_struct_ops=others,
        license=declarations.read_license(elf),
        enums=declarations.read_enums(btf),
        sections={each.name: each.size for each in elf.sections if each.name.startswith(declarations.DATA_SECTIONS)},
    )


def function_symbols(elf: ElfObject) -> dict[str, Symbol]:
    """Return the functions by name, in the order of the file; no two of them overlap."""
    symbols = [
        symbol
        for symbol in elf.symbols
        if symbol.type == SymbolType.FUNC
        and symbol.section < len(elf.sections)
        and elf.sections[symbol.section].executable
    ]
    symbols.sort(key=lambda symbol: (symbol.section, symbol.value))
    if len(symbols) > FUNCTION_LIMIT or sum(symbol.size for symbol in symbols) > SLOT_LIMIT * SLOT_BYTES:
        raise malformed(f"more than {FUNCTION_LIMIT} functions or {SLOT_LIMIT} instructions")
    previous: Symbol | None = None
    for symbol in symbols:
        _check_extent(symbol, elf.sections[symbol.section])
        if previous and previous.section == symbol.section and previous.value + previous.size > symbol.value:
            raise malformed(f"the functions {previous.name!r} and {symbol.name!r} overlap")
        previous = symbol
    return _named(symbols, elf)


def _check_extent(symbol: Symbol, section: Section) -> None:
    """Refuse a function without name or instructions, or one that leaves its section."""
    if not symbol.name or not symbol.size or symbol.size % SLOT_BYTES or symbol.value % SLOT_BYTES:
        raise malformed(f"function {symbol.name!r} of {symbol.size} bytes at byte {symbol.value}")
    if symbol.value + symbol.size > len(section.content):
        raise malformed(f"function {symbol.name!r} leaves section {section.name!r}")


def _named(symbols: list[Symbol], elf: ElfObject) -> dict[str, Symbol]:
    """Give every function a name of its own: global ones keep theirs, a static one whose name is taken gets a place."""
    functions: dict[str, Symbol] = {}
    for symbol in sorted(symbols, key=lambda symbol: not symbol.is_global):
        name, section = symbol.name, elf.sections[symbol.section].name
        if name in functions:
            name = f"{name}@{section}"
        if name in functions:
            name = f"{name}+{symbol.value}"
        if name in functions:
            raise malformed(f"two functions are called {name!r}")
        functions[name] = symbol
    return {
        name: functions[name]
        for name in sorted(functions, key=lambda name: (functions[name].section, functions[name].value))
    }


def _places(symbols: Mapping[str, Symbol]) -> dict[tuple[int, int], str]:
    return {(symbol.section, symbol.value): name for name, symbol in symbols.items()}


def _function(
    elf: ElfObject, btf: Btf, ext: BtfExt, name: str, symbol: Symbol, references: References, lines: _Lines
) -> Function:
    section = elf.sections[symbol.section]
    code = section.content[symbol.value : symbol.value + symbol.size]
    instructions = decode(code, symbol.value, references.resolver(section), lines.of(section.name))
    references.check_all_used(
        section, symbol, {symbol.value + instruction.slot * SLOT_BYTES for instruction in instructions}
    )
    (type_id,) = ext.functions.get(section.name, NO_RECORDS).get(symbol.value) or (0,)
    is_program = symbol.is_global and section.name != ".text"
    return Function(name, section.name.removeprefix("?"), instructions, _parameters(btf, type_id), is_program)


def _with_calls(function: Function, calls: Sequence[InlinedCall]) -> Function:
    """Return a function whose lines show from where the calls lead to them."""
    if not calls:
        return function
    places: dict[int, Line] = {}
    left = _MOST_PLACES
    for call in calls:
        slots = range(max(0, call.start) // SLOT_BYTES, min(call.end // SLOT_BYTES, SLOT_LIMIT))
        left -= len(slots)
        if left < 0:
            return function
        for slot in slots:
            places[slot] = Line(call.file, call.line, "", places.get(slot))
    known: dict[Line, Line] = {}

    def with_call(instruction: Instruction) -> Instruction:
        line, place = instruction.line, places.get(instruction.slot)
        if line is None or place is None:
            return instruction
        named = replace(line, called_from=place)
        return replace(instruction, line=known.setdefault(named, named))

    return replace(function, instructions=tuple(map(with_call, function.instructions)))


def _parameters(btf: Btf, type_id: int) -> tuple[str, ...]:
    """Return the names of a FUNC's parameters; type 0: the object does not say."""
    if type_id == 0:
        return ()
    function = btf.type(type_id)
    prototype = btf.type(function.target) if function.kind is BtfKind.FUNC else function
    if prototype.kind is not BtfKind.FUNC_PROTO:
        raise malformed(f"BTF describes type {type_id}, a {function.kind.name}, as a function")
    return tuple(parameter.name for parameter in btf.members(prototype, _PARAMETER_LIMIT))


class _Lines:
    """Makes source lines of the records of .BTF.ext; equal ones are one object."""

    def __init__(self, btf: Btf, ext: BtfExt) -> None:
        self._btf = btf
        self._records = ext.lines
        self._known: dict[tuple[int, ...], Line] = {}
        self._texts: dict[int, str] = {}

    def of(self, section: str) -> Callable[[int], Line | None]:
        """Return a function: offset in a section -> the line that begins there, None if none does."""
        records = self._records.get(section, NO_RECORDS)

        def line_at(place: int) -> Line | None:
            record = records.get(place)
            return self._line(record) if record else None

        return line_at

    def _line(self, record: tuple[int, ...]) -> Line:
        file, text, line_and_column = record
        key = file, text, line_and_column >> _COLUMN_BITS
        if key not in self._known:
            self._known[key] = Line(self._text(file), key[2], self._text(text))
        return self._known[key]

    def _text(self, offset: int) -> str:
        if offset not in self._texts:
            self._texts[offset] = self._btf.text(offset, _TEXT_BYTES).strip()
        return self._texts[offset]
