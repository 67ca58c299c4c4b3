"""How large a value may be: what a path knows of it, what is ever written to a variable, how many CPUs there are."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from verifier.logic.walk.events import Held, Ranges, Store, Walk
from verifier.logic.walk.facts import Facts, Range, range_of
from verifier.logic.walk.terms import MASK64, Term, TermKind, linear, low_half
from verifier.object.image import BpfImage

COUNTED_CPUS = 512
"""CPUs that loops over CPUs, and memory for each of them, are counted for: what our own headers support at most."""

_CPUS = frozenset({"scx_bpf_nr_cpu_ids", "bpf_cpumask_weight", "bpf_get_smp_processor_id", "scx_bpf_task_cpu",
                   "bpf_cpumask_first", "bpf_cpumask_first_and", "bpf_cpumask_any_distribute",
                   "bpf_cpumask_any_and_distribute", "bpf_cpumask_first_zero"})  # fmt: skip
_POINTER_BYTES = 8
_WORD = 8
_NO_END = 1 << 64
_MOST_ELEMENTS = 64
"""Elements of a variable that are looked at, where an index may be any of theirs."""
_BUILT_IN = ("merged", "before", "stack", "too deep", "atomic", "member", "counter")


class Place(NamedTuple):
    """A variable, or a part of one: where it lies in its section."""

    section: str
    offset: int
    size: int


class Writes:
    """The stores to a section: by the eight bytes that they change, and as spans of which nothing more is known."""

    def __init__(self) -> None:
        self._plain: dict[int, list[tuple[int, Store]]] = {}
        self._spans: list[tuple[int, int]] = []
        self._ends: list[int] = []

    def add(self, offset: int, store: Store) -> None:
        """Note a store, at an offset or anywhere in its reach."""
        last = store.reach[1] if store.reach else offset
        if last != offset or not 0 < store.size <= _WORD:
            self._spans.append((offset, last + store.size if store.size else _NO_END))
            return
        for word in range(offset // _WORD, (offset + store.size - 1) // _WORD + 1):
            self._plain.setdefault(word, []).append((offset, store))

    def settle(self) -> None:
        """Sort the spans, of which those that overlap are one."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted(self._spans):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        self._spans, self._ends = merged, [end for _start, end in merged]

    def over(self, offset: int, size: int) -> list[tuple[int, Store]] | None:
        """Return the stores that change some bytes, None if others may do so, too."""
        behind = bisect_right(self._ends, offset)
        if behind < len(self._spans) and self._spans[behind][0] < offset + size:
            return None
        words = range(offset // _WORD, (offset + size - 1) // _WORD + 1)
        return [(at, store) for word in words for at, store in self._plain.get(word, ())
                if at < offset + size and offset < at + store.size]  # fmt: skip


@dataclass(frozen=True)
class Variables:
    """What the variables of an object may hold, whatever has run.

    Args:
        writes: all stores of the object that may be to a variable, by section.
    """

    image: BpfImage
    walk: Walk
    writes: Mapping[str, Writes]
    lost: frozenset[str]
    """Sections in which something is written at a place that is not known; "" stands for all of them."""

    known: dict[Place, tuple[int, int] | None] = field(default_factory=dict, repr=False)

    def bounds(self, place: Place) -> tuple[int, int] | None:
        """Return the bounds of what a place holds; None if they are not known."""
        if place not in self.known:
            self.known[place] = self._bounds(place)
        return self.known[place]

    def _bounds(self, place: Place) -> tuple[int, int] | None:
        initial = self._initial(place)
        written = self._over(*place)
        if initial is None or written is None:
            return None
        low = high = initial
        for offset, store in written:
            if store.value is None or (offset, store.size) != (place.offset, place.size):
                return None
            least, most = _of_cpus(store.value) or (store.low, store.high)
            low, high = min(low, least), max(high, most)
        return low, high

    def is_constant(self, section: str, offset: int, size: int) -> bool:
        """Whether nothing ever writes to some bytes."""
        return section.startswith(".rodata") or self._over(section, offset, size) == []

    def _over(self, section: str, offset: int, size: int) -> list[tuple[int, Store]] | None:
        if {section, ""} & self.lost:
            return None
        return self.writes[section].over(offset, size) if section in self.writes else []

    def _initial(self, place: Place) -> int | None:
        for variable in self.image.variables.values():
            start = place.offset - variable.offset
            if variable.section == place.section and 0 <= start <= variable.size - place.size:
                content = variable.content[start : start + place.size] if variable.content else bytes(place.size)
                return int.from_bytes(content, "little")
        return None


def read_variables(image: BpfImage, walk: Walk) -> Variables:
    """Sort the stores of a walk by the section that they may change."""
    writes: dict[str, Writes] = defaultdict(Writes)
    lost: set[str] = set()
    for store in walk.stores:
        for address in walk.may_be(store.address):
            constant, addends = linear(address)
            sections = {
                part.name for base, _factor in addends for part in walk.may_be(base) if part.kind is TermKind.GLOBAL
            }
            if len(addends) == 1 and addends[0][0].kind is TermKind.GLOBAL and addends[0][1] == 1:
                writes[addends[0][0].name].add(constant, store._replace(reach=None))
            elif len(sections) == 1 and address is store.address and store.reach:
                writes[min(sections)].add(store.reach[0], store)
            elif sections:
                lost |= sections
            elif any(_may_be_anywhere(part) for base, _factor in addends for part in walk.may_be(base)):
                lost.add("")
    for each in writes.values():
        each.settle()
    return Variables(image, walk, dict(writes), frozenset(lost))


def _may_be_anywhere(base: Term) -> bool:
    """Whether an address may be one in a data section, although nothing says so."""
    if base.kind is not TermKind.UNKNOWN or base.parts[0] not in _BUILT_IN:
        return False
    return base.parts[0] != "stack" or bool(base.parts[2] == _POINTER_BYTES)


def _of_cpus(value: Term) -> tuple[int, int] | None:
    """The bounds of a number of CPUs, or of one CPU."""
    value = low_half(value)
    return (0, COUNTED_CPUS) if value.kind in (TermKind.CALL, TermKind.PURE) and value.name in _CPUS else None


@dataclass(frozen=True)
class Bounds:
    """Asks for the bounds of values."""

    variables: Variables

    def of(self, term: Term, facts: Facts, bits: int = 64) -> tuple[int, int]:
        """Return the least and the most that a value may be, as an unsigned number of so many bits."""
        results = self._ranges(term, facts, bits)
        return min(each.low for each in results), max(each.high for each in results)

    def of_int(self, term: Term, facts: Facts) -> tuple[int, int]:
        """Return the least and the most that a value may be, as an int."""
        results = self._ranges(term, facts, 32)
        return min(each.signed_low for each in results), max(each.signed_high for each in results)

    def _ranges(self, term: Term, facts: Facts, bits: int) -> list[Range]:
        return [self._range(value, facts, bits) for value in self.variables.walk.may_be(term)]

    def _range(self, term: Term, facts: Facts, bits: int) -> Range:
        cpus, facts = _of_cpus(term), self._with_variables(term, facts)
        known = range_of(facts, bits, low_half(term) if bits == 32 else term)
        for wide in (range_of(facts, 64, term), range_of(facts, 64, low_half(term))):
            if wide.high < 1 << 31 and wide.high < known.high:
                known = wide  # as many bits as are asked for hold all of it
        if cpus is None or known.high <= cpus[1]:
            return known
        return Range(max(known.low, cpus[0]), cpus[1], max(known.low, cpus[0]), cpus[1])

    def _with_variables(self, term: Term, facts: Facts) -> Facts:
        """Add what is known of the variables, and of the counts of CPUs, that a value is made of."""
        more = Facts(facts)
        for base, _factor in linear(low_half(term))[1]:
            part = low_half(base)
            known = _of_cpus(part) or self._loaded(part, facts)
            for bits in (32, 64):
                now = range_of(facts, bits, part)
                if known is not None and known[1] < 1 << 31 and known[1] < now.high:
                    low = max(known[0], now.low)
                    more[bits, part] = Range(low, max(low, known[1]), low, max(low, known[1]))
        return more

    def _loaded(self, term: Term, facts: Facts) -> tuple[int, int] | None:
        """What a variable may hold, or the elements of one that an index may name."""
        if term.kind is not TermKind.LOAD:
            return None
        constant, addends = linear(term.parts[1])
        sections = [atom.name for atom, factor in addends if atom.kind is TermKind.GLOBAL and factor == 1]
        places = [constant]
        for index, factor in addends:
            if index.kind is not TermKind.GLOBAL:
                known = range_of(facts, 32, low_half(index))
                if len(places) * (known.high - known.low + 1) > _MOST_ELEMENTS:
                    return None
                places = [place + factor * value for place in places for value in range(known.low, known.high + 1)]
        if len(sections) != 1:
            return None
        low, high = MASK64, 0
        for place in places:
            span = self.variables.bounds(Place(sections[0], place & MASK64, term.parts[2]))
            if span is None:
                return None
            low, high = min(low, span[0]), max(high, span[1])
        return low, high

    def held(self, places: Held) -> Ranges:
        """Return the bounds of what registers and stack slots hold."""
        ranges: dict[int, tuple[int, int]] = {}
        for place, values in places.items():
            low, high = MASK64, 0
            for value, (least, most) in values.items():
                known = self.of(value, Facts())
                low, high = min(low, max(least, known[0])), max(high, min(most, known[1]))
            ranges[place] = (low, high) if low <= high else (0, MASK64)
        return ranges
