"""Writing what a scheduler's own loader would set into its object, before anything judges or loads it.

    content = with_rodata(object_bytes, rodata, enum_values(target))

Only bytes of .rodata and of the ops struct change, at places that the object's own BTF gives: neither its code nor its
layout does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from schedagent.core.errors import UsageError
from schedagent.core.policies.rodata import Rodata, Value
from verifier.object import declarations
from verifier.object.btf import Btf, BtfKind, Placed, Type, read_btf
from verifier.object.elf import ElfObject, Section, malformed, read_elf

_RODATA = ".rodata"
_OPS_MEMBER_LIMIT = 256
_FLAG_PREFIX = "SCX_OPS_"
_NAMED = 5
_BOOL, _CHAR_BYTES = 1 << 26, 1
"""Of the word behind a BTF_KIND_INT: BTF_INT_BOOL (include/uapi/linux/btf.h)."""


@dataclass(frozen=True)
class _Spot:
    """Some bytes of the file, and the type that lies there."""

    offset: int
    size: int
    type_id: int


def with_rodata(object_bytes: bytes, rodata: Rodata, flags: Mapping[str, int]) -> bytes:
    """Return the object with these values in it.

    Args:
        flags: the kernel's values of SCX_OPS_* by name.

    Raises:
        UsageError: the object has no such `const volatile` variable, a value does not fit its type, or the kernel has
            no such flag.
        PolicyError: the object cannot be read.
    """
    if not rodata:
        return object_bytes
    elf = read_elf(object_bytes)
    types = elf.find(".BTF")
    if types is None:
        raise malformed("it has no BTF, the types that a scheduler cannot be loaded without")
    btf = read_btf(types.content)
    placements = declarations.read_placements(elf, btf)
    content = bytearray(object_bytes)
    constants = dict(_constants(elf, btf, placements))
    for name, value in rodata.constants:
        if name not in constants:
            raise _unknown(name, sorted(constants))
        spot = constants[name]
        content[spot.offset : spot.offset + spot.size] = _encoded(btf, spot, value, name)
    members = dict(rodata.ops)
    for flag in rodata.flags:
        if flag not in flags or not flag.startswith(_FLAG_PREFIX):
            known = ", ".join(sorted(name for name in flags if name.startswith(_FLAG_PREFIX)))
            raise UsageError(f"[ops] flags: this kernel has no {flag}", f"it has: {known}")
        members["flags"] = members.get("flags", 0) | flags[flag]
    if members:
        _set_ops(content, elf, btf, placements, members)
    return bytes(content)


def _unknown(name: str, known: list[str]) -> UsageError:
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return UsageError(
        f"[rodata] {name}: the object has no const volatile variable of this name that a loader may set",
        f"it has: {', '.join(known[:_NAMED]) or 'none'}{more}",
    )


def _constants(elf: ElfObject, btf: Btf, placements: declarations.Placements) -> Iterator[tuple[str, _Spot]]:
    """Yield the variables whose value the compiler did not use; a name that two static ones have is nobody's."""
    seen: dict[str, _Spot | None] = {}
    for section, placed in _placed(elf, placements, _RODATA):
        if btf.is_volatile(placed.type_id):
            spot = _Spot(section.offset + placed.offset, placed.size, placed.type_id)
            seen[placed.name] = None if placed.name in seen else spot
    yield from ((name, spot) for name, spot in seen.items() if spot is not None)


def _placed(elf: ElfObject, placements: declarations.Placements, prefix: str) -> Iterator[tuple[Section, Placed]]:
    for name, variables in placements.items():
        section = elf.find(name) if name.startswith(prefix) else None
        if section is not None and section.content:
            yield from ((section, variable) for variable in variables)


def _set_ops(
    content: bytearray,
    elf: ElfObject,
    btf: Btf,
    placements: declarations.Placements,
    members: Mapping[str, int],
) -> None:
    """Set members of every sched_ext_ops; flags are added to those that the source sets."""
    for name in declarations.OPS_SECTIONS:
        for section, variable in _placed(elf, {name: placements.get(name, [])}, name):
            definition = btf.resolve(variable.type_id)
            if declarations.essential(definition.name) != declarations.OPS_TYPE:
                continue
            places = {member.name: member for member in btf.members(definition, _OPS_MEMBER_LIMIT)}
            for key, value in members.items():
                if key not in places:
                    raise UsageError(f"[ops] {key}: the ops struct of the object has no such member")
                member = places[key]
                spot = _Spot(
                    section.offset + variable.offset + member.bit_offset // 8, btf.size(member.type_id), member.type_id
                )
                present = int.from_bytes(content[spot.offset : spot.offset + spot.size], "little")
                number = present | value if key == "flags" else value
                content[spot.offset : spot.offset + spot.size] = _encoded(btf, spot, number, f"[ops] {key}")


def _encoded(btf: Btf, spot: _Spot, value: Value, what: str) -> bytes:
    """Return a value as its type has it."""
    kind = btf.resolve(spot.type_id)
    if kind.kind is BtfKind.ARRAY:
        return _elements(btf, kind, spot, value, what)
    if not isinstance(value, int):
        raise UsageError(f"{what} is a {kind.kind.name.lower()} of {spot.size} bytes, not a text or a list")
    return _scalar(kind, spot.size, value, what)


def _elements(btf: Btf, array: Type, spot: _Spot, value: Value, what: str) -> bytes:
    element, count = btf.element(array)
    kind, size = btf.resolve(element), btf.size(element)
    if isinstance(value, str):
        raw = value.encode()
        if size != _CHAR_BYTES or len(raw) >= count:
            raise UsageError(f"{what} holds {count} elements of {size} bytes; the text takes {len(raw) + 1} bytes")
        return raw.ljust(spot.size, b"\0")
    values = (value,) if isinstance(value, int) else value
    if isinstance(value, int) or len(values) > count or size * count != spot.size:
        raise UsageError(f"{what} is an array of {count}, and {len(values)} values are given", "give a list")
    return b"".join(_scalar(kind, size, each, what) for each in values).ljust(spot.size, b"\0")


def _scalar(kind: Type, size: int, value: int, what: str) -> bytes:
    if kind.kind not in (BtfKind.INT, BtfKind.ENUM, BtfKind.ENUM64):
        raise UsageError(f"{what} is a {kind.kind.name.lower()}, and only numbers can be set")
    signed = declarations.is_signed(kind)
    bits = 8 * size - signed
    low, high = (-(1 << bits) if signed else 0), (1 << bits) - 1
    if kind.kind is BtfKind.INT and kind.group(0)[0] & _BOOL:
        high = 1
    if not low <= value <= high:
        raise UsageError(f"{what} = {value} does not fit its type of {size} bytes", f"accepted: {low} to {high}")
    return value.to_bytes(size, "little", signed=signed)
