"""What calls do to maps, and what lies behind pointers of our own: keys, values, who put them there.

Arguments as in include/uapi/linux/bpf.h and kernel/bpf/helpers.c.
"""

from __future__ import annotations

from verifier.logic.taint import arithmetic
from verifier.logic.taint.flow import OUTSIDE
from verifier.logic.taint.operations import Operations
from verifier.logic.taint.state import State
from verifier.logic.taint.values import FREE, Area, Kind, Target, Value, by_area, join, pointer
from verifier.logic.walk.calls import LRU_HASH, LRU_PERCPU_HASH

_FORGETFUL = frozenset({LRU_HASH, LRU_PERCPU_HASH})

_HASHES = frozenset({1, 5, 9, 10, 13})
"""BPF_MAP_TYPE_HASH and its kin: what is in them depends on the keys that were put in."""


class Maps(Operations):
    """The third of the four parts of the machine."""

    def _labels_of(self, state: State, arguments: list[Value | None]) -> int:
        """The labels of arguments, and of what they point to in our own memory."""
        labels = 0
        for value in arguments:
            if value is not None:
                labels |= value.labels | self.content(state, value).labels
        return labels

    def content(self, state: State, value: Value, size: int = 512) -> Value:
        """All that lies behind a pointer of ours, as one value."""
        held: Value | None = None
        for area, targets in by_area(value.points, 0):
            if area.kind in ("stack", "variable", "heap", "map"):
                held = join(held, self.read_area(state, area, targets, size))
            elif area.kind == "kernel" and area.name:
                held = join(held, self.field(area.name, 1))
        return held or Value(fixed=True, size=0.0)

    def _write_through(self, state: State, value: Value | None, labels: int, size: int = 8) -> None:
        """A call writes to memory of ours."""
        for target in value.points if value is not None else ():
            if target.area.kind in ("stack", "variable", "heap", "map"):
                place = Target(target.area, None, target.offset if target.offset is not None else target.base)
                self.write(state, place, size, FREE.with_labels(labels))

    # --- maps

    def _key_labels(self, state: State, table: str, key: Value | None) -> int:
        """What a lookup by this key tells, beside what is in the map."""
        info = self.image.maps.get(table)
        size = info.key_size if info is not None and info.key_size else 8
        if key is None:
            return 0
        value = self.content(state, key, size)
        self.replay.reads(Area("map", table))
        by_pid = bool(value.kinds & Kind.PID) and not value.changed and info is not None and info.type in _HASHES
        if by_pid and self.memory.keyed_by_pid.get(table, False):
            return key.labels | value.labels
        return key.labels | arithmetic.used_as(value, Kind.NONE, self.blame)

    def lookup(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """bpf_map_lookup_elem and its like."""
        table, key = arguments[0], arguments[1]
        if table is None:
            return None
        targets, labels = [], table.labels
        for target in table.points:
            if target.area.kind != "map":
                continue
            labels |= self._key_labels(state, target.area.name, key)
            self.reads(target.area)
            labels |= self.memory.presence[target.area.name]
            info = self.image.maps.get(target.area.name)
            if info is not None and info.inner is not None:
                targets.append(Target(Area("map", f"{target.area.name}.inner"), 0))
                continue
            if info is not None and info.type in _HASHES and self.labelling and target.area not in self.memory.written:
                labels |= self.label("map values")
            forgets = info is not None and info.type in _FORGETFUL and key is not None
            if forgets and key is not None and self.content(state, key, self._key_size(target.area.name)).is_constant:
                labels |= self.label("counters")  # it is there until enough others have come
            targets.append(Target(target.area, 0))
        return pointer(*targets, labels=labels)

    def update(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """bpf_map_update_elem and bpf_map_push_elem: the content of a buffer goes into the map."""
        table = arguments[0]
        key, value = (arguments[1], arguments[2]) if "update" in name else (None, arguments[1])
        for target in table.points if table is not None else ():
            if target.area.kind != "map":
                continue
            labels = self.context
            if key is not None:
                held = self.content(state, key, self._key_size(target.area.name))
                by_pid = bool(held.kinds & Kind.PID) and not held.changed and OUTSIDE not in self.routine.members
                self.replay.reads(target.area)
                known = self.memory.keyed_by_pid.get(target.area.name, True)
                if self.memory.keyed_by_pid.get(target.area.name) != (known and by_pid):
                    self.memory.keyed_by_pid[target.area.name] = known and by_pid
                    self.touch(target.area)
                labels |= key.labels | (held.labels if by_pid else arithmetic.used_as(held, Kind.NONE, self.blame))
            self._present(target.area, labels)
            if value is not None:
                self._copy(state, value, target.area, labels if key is None else 0)
        return FREE.with_labels(self.context)

    def _key_size(self, table: str) -> int:
        info = self.image.maps.get(table)
        return info.key_size if info is not None and info.key_size else 8

    def _present(self, area: Area, labels: int) -> None:
        """What decides which keys are in a map."""
        if self.memory.presence[area.name] | labels != self.memory.presence[area.name]:
            self.memory.presence[area.name] |= labels
            self.touch(area)

    def _copy(self, state: State, source: Value, area: Area, labels: int) -> None:
        """Copy what a pointer shows into an area, part by part."""
        info = self.image.maps.get(area.name)
        length = info.value_size if info is not None and info.value_size else 8
        for origin in source.points:
            own = origin.area == Area("stack", self.routine.name)
            if not own or origin.offset is None:
                held = self.content(state, source, length)
                self.write(state, Target(area, None), 8, held.with_labels(labels | source.labels))
                continue
            for (offset, size), value in list(state.stack.items()):
                if origin.offset <= offset < origin.offset + length:
                    place = Target(area, offset - origin.offset)
                    self.write(state, place, size, value.with_labels(labels | source.labels))

    def pop(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """bpf_map_pop_elem and bpf_map_peek_elem."""
        table, buffer = arguments[0], arguments[1]
        labels = 0
        held: Value | None = None
        for target in table.points if table is not None else ():
            self.reads(target.area)
            labels |= self.memory.presence[target.area.name]
            info = self.image.maps.get(target.area.name)
            size = info.value_size if info is not None and info.value_size else 8
            held = join(held, self.read_place(state, Target(target.area, None), size))
            for place in buffer.points if buffer is not None else ():
                for part in self._parts(target.area, size):
                    value = self.read_place(state, Target(target.area, *part[:1]), part[1])
                    if value is not None:
                        at = None if place.offset is None else place.offset + (part[0] or 0)
                        self.write(state, Target(place.area, at, place.base), part[1], value)
        return FREE.with_labels(labels)

    def _parts(self, area: Area, size: int) -> list[tuple[int | None, int]]:
        known = list(self.memory.cells.get(area, {}))
        return known or [(0, size)]

    def storage(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """bpf_task_storage_get and its like: a record that belongs to the task, as long as nobody marks some tasks."""
        table, owner, flags = arguments[0], arguments[1], arguments[3]
        if table is None or owner is None:
            return None
        targets, labels = [], table.labels | owner.labels
        creates = flags is None or flags.const != 0
        for target in table.points:
            if creates:
                self._present(target.area, self.context | owner.labels)
                if arguments[2] is not None and arguments[2].points:
                    self._copy(state, arguments[2], target.area, 0)
            self.reads(target.area)
            labels |= self.memory.presence[target.area.name]
            targets.append(Target(target.area, 0))
        return pointer(*targets, labels=labels)

    def delete(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """What decides that a record goes decides what is found later."""
        for target in arguments[0].points if arguments[0] is not None else ():
            labels = self.context
            if "storage" not in name:
                labels |= self._key_labels(state, target.area.name, arguments[1])
            self._present(target.area, labels)
        return FREE.with_labels(self.context)
