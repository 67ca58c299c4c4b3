"""What outlives one instruction: variables, map values, heap objects, and stacks that another function sees.

Order of time plays no part here: a place holds whatever any program ever stores in it, and what it held at first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from verifier.logic.taint.values import (
    CLOCKS,
    DURATIONS,
    FREE,
    PLACES,
    Area,
    Kind,
    Place,
    Target,
    Value,
    constant,
    join,
)
from verifier.object.image import BpfImage, Variable

_ROUNDS_OF_GROWTH = 8
"""After so many changes of a place its constants are taken to be all there: only sums grow on."""

_FADES = 0.999
"""An average keeps less than all of what it was."""

_MULTIPLIES = 1.001
"""What is multiplied each time runs over, and is as good as random."""

_CASCADE = 1e-6
"""The step of a counter of the rounds of another one, or of long times: whatever it is compared with is too much."""

_KEPT_AS_CHANGED = PLACES | Kind.PID | Kind.FLAGS


@dataclass(slots=True)
class Cell:
    """One part of an area.

    Args:
        value: what is stored, sums that grow from themselves left out.
        sums: kinds of what is added to it.
        step: the least constant that is added to it at a time; 0 if none is.
        sites: the instructions that store here, and whether each does so again and again, and not once in the life of a
            task or of the policy: what is measured from a clock that was stored once is an age.
        stored: how often it changed.
        scales: of the durations that each instruction adds, as first seen: an average divides by as much as it
            multiplies with, which must not count again each time round.
    """

    value: Value | None = None
    sums: int = Kind.NONE
    step: float = 0.0
    sites: dict[tuple[str, int], bool] = field(default_factory=dict)
    stored: int = 0
    scales: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def recent(self) -> bool:
        """Whether a clock is stored here again and again."""
        return any(self.sites.values())


@dataclass
class Memory:
    """All areas of an object.

    Args:
        seeded: whether what an area holds at first counts: only once everything that is stored has been seen, or what
            is not stored yet would be taken for a constant.
    """

    image: BpfImage
    seeded: bool = False
    cells: dict[Area, dict[tuple[int | None, int], Cell]] = field(default_factory=lambda: defaultdict(dict))
    presence: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    written: set[Area] = field(default_factory=set)
    keyed_by_pid: dict[str, bool] = field(default_factory=dict)
    _variables: dict[str, Variable] = field(default_factory=dict)
    _loaded: dict[Area, dict[tuple[tuple[Target, ...], int, bool], Value | None]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """What was loaded since an area changed last: most loads of a round are those of the round before."""

    _tables: dict[tuple[str, int, int], Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for variable in self.image.variables.values():
            self._variables[f"{variable.section}+{variable.offset}"] = variable

    def variable(self, section: str, offset: int) -> Target:
        """The variable over an offset of a data section."""
        for variable in self.image.variables.values():
            if variable.section == section and variable.offset <= offset < variable.offset + max(variable.size, 1):
                name = f"{section}+{variable.offset}"
                return Target(Area("variable", name), offset - variable.offset)
        return Target(Area("variable", f"{section}?"), offset)

    def store(
        self,
        target: Target,
        size: int,
        value: Value,
        site: tuple[str, int],
        *,
        recent: bool,
        sums: bool = True,
        cascaded: bool = False,
    ) -> bool:
        """Store a value; true if that changes what is known."""
        cell = self.cells[target.area].setdefault((target.offset, size), Cell())
        self.written.add(target.area)
        before = (cell.value, cell.sums, cell.step, cell.recent)
        own = any(place.area == target.area and _meets(place.offset, target.offset) for place in value.origins)
        if own and value.kinds & Kind.TIME and value.loaded is None and not value.changed:
            recent = False  # the earlier of two times, kept
        if not own or not sums or value.kinds & (CLOCKS & ~Kind.COUNT):
            cell.value = join(cell.value, value, widen=cell.stored > _ROUNDS_OF_GROWTH)
        else:
            self._grow(cell, target, value, site, cascaded=cascaded)
        cell.sites[site] = recent
        changed = (cell.value, cell.sums, cell.step, cell.recent) != before
        cell.stored += changed
        if changed:
            self._forget(target, size)
        return changed

    def _forget(self, target: Target, size: int) -> None:
        """What was loaded from a place is no longer what it holds."""
        known = self._loaded[target.area]
        for key in [key for key in known if any(_overlap(each, key[1], target.offset, size) for each in key[0])]:
            del known[key]

    def _grow(self, cell: Cell, target: Target, value: Value, site: tuple[str, int], *, cascaded: bool) -> None:
        """Something that was loaded from a place is stored there again, with more."""
        place = Place(target.area, target.offset)
        multiplied = value.gain > _MULTIPLIES and value.loaded == place and not value.kinds & DURATIONS
        if cascaded or multiplied:
            value = value._replace(grown=min(value.grown, _CASCADE)) if value.grown else value
        direct = value.loaded == place and value.grown > 0
        fades = value.gain < _FADES and not cascaded
        if fades and not value.kinds & DURATIONS:
            cell.value = join(cell.value, value._replace(const=None, fixed=False), widen=True)
            return
        if direct or (value.grown > 0 and not value.kinds & (DURATIONS | PLACES | Kind.PID)):
            cell.sums |= Kind.COUNT
            cell.step = min(cell.step or value.grown, value.grown)
        elif value.kinds & DURATIONS:
            cell.sums |= Kind.SUM
        if value.kinds & DURATIONS or value.grown > 0:
            scale = cell.scales.setdefault(site, value.scale if value.kinds & DURATIONS else 1.0)
            value = value._replace(size=0.0, const=None, fixed=False, scale=scale,
                            kinds=value.kinds & ~(DURATIONS | Kind.COUNT))  # fmt: skip
        cell.value = join(cell.value, value, widen=cell.stored > _ROUNDS_OF_GROWTH)

    def load(self, target: Target, size: int) -> Value | None:
        """What may be loaded there; None if nothing is known to be stored."""
        return self.load_any(target.area, (target,), size)

    def load_any(self, area: Area, targets: tuple[Target, ...], size: int) -> Value | None:
        """What may be loaded from any of some places of an area."""
        known, key = self._loaded[area], (targets, size, self.seeded)
        if key not in known:
            loaded: Value | None = None
            for target in targets:
                loaded = join(loaded, self._load(target, size) if len(targets) == 1 else self.load(target, size))
            known[key] = loaded
        return known[key]

    def _load(self, target: Target, size: int) -> Value | None:
        loaded = self._initial(target, size) if self.seeded else None
        for (offset, width), cell in self.cells.get(target.area, {}).items():
            if cell.value is None or not _overlap(target, size, offset, width):
                continue
            value = _held(cell, aged=self.seeded)
            if (offset, width) != (target.offset, size):
                kinds = value.kinds | (Kind.ADDRESS if value.points and width != size else Kind.NONE)
                points = value.points if width == size else frozenset()
                value = value._replace(const=None, points=points, kinds=kinds)
            loaded = join(loaded, value)
        if loaded is None:
            return None
        if target.area.name.startswith(".rodata"):
            return loaded
        place = Place(target.area, target.offset)
        changed = loaded.changed and bool(loaded.kinds & _KEPT_AS_CHANGED)
        return loaded._replace(origins=loaded.origins | {place}, loaded=place, grown=0.0, gain=1.0, changed=changed,
                       remembered=True)  # fmt: skip

    def _initial(self, target: Target, size: int) -> Value:
        """What the object's file puts there: zero for maps and the heap."""
        variable = self._variables.get(target.area.name) if target.area.kind == "variable" else None
        if variable is None:
            return constant(0)
        if target.offset is None:
            return self._table(variable, max(target.base, 0))
        stored = variable.content[max(target.offset, 0) : max(target.offset + size, 0)]  # what is not there is zero
        return constant(int.from_bytes(stored, "little"))

    def _table(self, variable: Variable, base: int) -> Value:
        """Any element of a variable from an offset on; one of many MiB is zero, and its file has nothing of it."""
        key = variable.section, variable.offset, base
        if key not in self._tables:
            self._tables[key] = _of_table(variable.content[base:], variable.size - base)
        return self._tables[key]

    def is_flag(self, place: Place) -> bool:
        """Whether only constants, or a count, are ever stored there."""
        cells = self.cells.get(place.area, {})
        held = [cell for (offset, _size), cell in cells.items() if _meets(offset, place.offset)]
        return bool(held) and all(cell.value is None or cell.value.fixed or cell.sums & Kind.COUNT for cell in held)

    def holders(self, label: int) -> Iterator[Area]:
        """Yield the areas that hold any of these labels."""
        for area, cells in self.cells.items():
            if any(cell.value is not None and cell.value.labels & label for cell in cells.values()):
                yield area


def _held(cell: Cell, *, aged: bool) -> Value:
    value = cell.value or FREE
    kinds = value.kinds | cell.sums
    if aged and kinds & (Kind.TIME | Kind.RUNTIME) and not cell.recent:
        kinds = kinds & ~(Kind.TIME | Kind.RUNTIME) | Kind.BIRTH
    if cell.sums & Kind.COUNT:
        scale = 1.0 / (cell.step or 1.0)
        if kinds & DURATIONS:
            scale = max(scale, value.scale)
        return value._replace(kinds=kinds, scale=scale, const=None, fixed=False)
    return value._replace(kinds=kinds) if kinds != value.kinds else value


def _of_table(content: bytes, size: int) -> Value:
    """Any element of a table of so many bytes, those behind its content zero: a constant, if they are all alike."""
    if content.count(0) == len(content):
        return constant(0)
    if len(content) >= size and content.count(content[0]) == len(content):
        return constant(0)._replace(const=None)
    largest = max((int.from_bytes(content[at : at + 8], "little") for at in range(0, len(content), 8)), default=0)
    return Value(fixed=True, size=float(largest if largest < 1 << 63 else (1 << 64) - largest))


def _meets(first: int | None, second: int | None) -> bool:
    return first is None or second is None or first == second


def _overlap(target: Target, size: int, offset: int | None, width: int) -> bool:
    if offset is None or target.offset is None:
        return offset is None or offset + width > target.base
    return offset < target.offset + size and target.offset < offset + width
