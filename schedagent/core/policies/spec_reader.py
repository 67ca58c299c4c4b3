"""Specs as people and models write them: read from a TOML or JSON table, written as a table, described by a schema.

Reading is strict: nothing is converted, unknown fields are mistakes, and all mistakes are reported at once, each by the
name of its field, so that a model can fix them in one answer.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from schedagent.core.errors import SpecError
from schedagent.core.policies.spec import (
    DISPATCHES,
    LONGEST_PROGRAM,
    MAX_CLASSES,
    MEASURES,
    MOST_PROGRAMS,
    NAME,
    NUMBERS,
    ORDERS,
    PLACEMENTS,
    PROGRAM_KINDS,
    Bounds,
    Match,
    Number,
    PolicySpec,
    TaskClass,
    check_spec,
    spec_error,
)
from schedagent.core.trials.workload import WorkloadClass

_MISSING = object()


def read_spec(table: object) -> PolicySpec:
    """Return the spec that a table (of TOML or JSON) contains.

    Raises:
        SpecError: with every mistake, each as `field = value: what is wrong`.
    """
    reader = _Reader()
    spec = reader.spec(table)
    if reader.problems or spec is None:
        raise spec_error(reader.problems)
    check_spec(spec)
    return spec


class _Reader:
    """Collects what is wrong with the types of a table while it reads it."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def spec(self, value: object) -> PolicySpec | None:
        table = self._table("the spec", value, "", _names(PolicySpec))
        if table is None:
            return None
        read: dict[str, Any] = {
            "name": self._take(table, "name", str, required=True),
            "goal": self._take(table, "goal", str, required=True),
            "dispatch": self._take(table, "dispatch", str),
            "starvation_ms": self._take(table, "starvation_ms", int),
            "preempt_scan_cpus": self._take(table, "preempt_scan_cpus", int),
            "target_workloads": self._words("target_workloads", table.get("target_workloads")),
            "classes": self._classes(table.get("classes")),
        }
        return None if self.problems else PolicySpec(**_given(read))

    def _words(self, where: str, value: object) -> object:
        if value is None:
            return _MISSING
        if not isinstance(value, list) or not value or not all(type(word) is str for word in value):
            self.problems.append(f"{where} = {value!r}: not a list of words"[:200])
            return _MISSING
        return tuple(value)

    def _classes(self, value: object) -> tuple[TaskClass, ...]:
        if not isinstance(value, list) or not value:
            self.problems.append("classes: missing" if value is None else f"classes = {value!r}: not tables")
            return ()
        read = [self._task_class(f"classes[{position}]", entry) for position, entry in enumerate(value)]
        return tuple(kind for kind in read if kind is not None)

    def _task_class(self, where: str, value: object) -> TaskClass | None:
        table = self._table(where, value, f"{where}.", _names(TaskClass))
        if table is None:
            return None
        before = len(self.problems)
        read: dict[str, Any] = {"name": self._take(table, "name", str, f"{where}.", required=True)}
        for name in ("order", "placement"):
            read[name] = self._take(table, name, str, f"{where}.")
        for name in ("slice_by_weight", "preempts"):
            read[name] = self._take(table, name, bool, f"{where}.")
        for name in sorted(NUMBERS.keys() & _names(TaskClass)):
            read[name] = self._take(table, name, int, f"{where}.")
        if table.get("match") is not None:
            read["match"] = self._match(f"{where}.match", table["match"])
        return TaskClass(**_given(read)) if len(self.problems) == before else None

    def _match(self, where: str, value: object) -> Match:
        table = self._table(where, value, f"{where}.", _names(Match))
        if table is None:
            return Match()
        read: dict[str, Any] = {"cgroup": self._take(table, "cgroup", str, f"{where}.")}
        read["programs"] = self._words(f"{where}.programs", table.get("programs"))
        for name in ("pinned", "kthread"):
            read[name] = self._take(table, name, bool, f"{where}.")
        for name in MEASURES:
            if table.get(name) is not None:
                read[name] = self._bounds(f"{where}.{name}", table[name])
        return Match(**_given(read))

    def _bounds(self, where: str, value: object) -> Bounds:
        table = self._table(where, value, f"{where}.", _names(Bounds))
        if table is None:
            return Bounds()
        read = {name: self._take(table, name, int, f"{where}.") for name in ("at_least", "below")}
        return Bounds(**_given(read))

    def _table(self, what: str, value: object, prefix: str, known: Iterable[str]) -> Mapping[str, object] | None:
        """Return a table; note fields that do not exist."""
        if not isinstance(value, Mapping):
            self.problems.append(f"{what}: not a table but {value!r}"[:200])
            return None
        for key in value:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                accepted = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
                self.problems.append(f"{prefix}{key}: no such field; {accepted}")
        return value

    def _take(
        self, table: Mapping[str, object], name: str, kind: type, prefix: str = "", *, required: bool = False
    ) -> object:
        """Return a field, _MISSING if it is not given; JSON's null is the same as not given."""
        value = table.get(name)
        if value is None:
            if required:
                self.problems.append(f"{prefix}{name}: missing")
            return _MISSING
        if type(value) is not kind:
            words = {str: "text", int: "a whole number", bool: "true or false"}
            self.problems.append(f"{prefix}{name} = {value!r}: not {words[kind]}"[:200])
            return _MISSING
        return value


def _names(kind: type) -> tuple[str, ...]:
    return tuple(entry.name for entry in fields(kind))


def _given(read: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in read.items() if value is not _MISSING}


def spec_table(spec: PolicySpec) -> dict[str, Any]:
    """Return a spec as the table that `read_spec` reads, without what is not given."""
    return {
        "name": spec.name,
        "goal": spec.goal,
        "target_workloads": list(spec.target_workloads),
        "dispatch": spec.dispatch,
        "starvation_ms": spec.starvation_ms,
        "preempt_scan_cpus": spec.preempt_scan_cpus,
        "classes": [_plain(kind) for kind in spec.classes],
    }


def _plain(part: TaskClass | Match | Bounds) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for entry in fields(part):
        value = getattr(part, entry.name)
        if value is None or value in ("", ()) or value == Match():
            continue
        if isinstance(value, tuple):
            value = list(value)
        table[entry.name] = _plain(value) if isinstance(value, (Match, Bounds)) else value
    return table


def spec_schema() -> dict[str, Any]:
    """Return the JSON schema of a spec."""
    properties = {
        "name": _name("name of the policy"),
        "goal": {"type": "string", "minLength": 1, "maxLength": 300, "description": "what it is for, one sentence"},
        "target_workloads": {"type": "array", "items": {"enum": [kind.value for kind in WorkloadClass]}, "minItems": 1},
        "dispatch": {"enum": list(DISPATCHES), "description": "how a CPU chooses among the classes"},
        "starvation_ms": _number(NUMBERS["starvation_ms"]),
        "preempt_scan_cpus": _number(NUMBERS["preempt_scan_cpus"]),
        "classes": {
            "type": "array",
            "items": _class_schema(),
            "minItems": 1,
            "maxItems": MAX_CLASSES,
            "description": "a task belongs to the first class that it matches; the last takes everything else",
        },
    }
    return {"title": "PolicySpec", **_object(properties, required=("name", "goal", "classes"))}


def _class_schema() -> dict[str, Any]:
    numbers = {name: _number(NUMBERS[name]) for name in _names(TaskClass) if name in NUMBERS}
    properties = {
        "name": _name("prefix of the tunables of this class"),
        "match": _match_schema(),
        "order": {"enum": list(ORDERS), "default": "vtime", "description": "who of the waiting goes first"},
        "placement": {"enum": list(PLACEMENTS), "default": "any_idle",
                      "description": "which idle CPU a waking task takes"},
        "slice_by_weight": _flag("slices in proportion to weight; not for vtime and deadline"),
        "preempts": _flag("a task that wakes interrupts one of lower priority; needs dispatch = priority"),
        **numbers,
    }  # fmt: skip
    return _object(properties, required=("name",))


def _match_schema() -> dict[str, Any]:
    properties: dict[str, Any] = {
        "programs": {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": LONGEST_PROGRAM},
            "minItems": 1,
            "maxItems": MOST_PROGRAMS,
            "description": "tasks of these programs: labels of the profile's tables, or what is measured of every "
            + "program: "
            + "; ".join(f"{name}: {about}" for name, about in PROGRAM_KINDS.items()),
        },
        "cgroup": {"type": "string", "maxLength": 63, "description": "name of the task's own cgroup"},
        "pinned": _flag("whether the task may use one CPU only"),
        "kthread": _flag("whether it is a kernel thread"),
    }
    for name, accepted in MEASURES.items():
        bound = {"type": "integer", "minimum": accepted.minimum, "maximum": accepted.maximum}
        bounds = _object({"at_least": bound, "below": bound})
        properties[name] = {**bounds, "minProperties": 1, "description": accepted.about}
    return {**_object(properties), "description": "all conditions must hold; leave it out in the last class"}


def _object(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        **({"required": list(required)} if required else {}),
    }


def _name(what: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{NAME.pattern}$", "description": what}


def _flag(what: str) -> dict[str, Any]:
    return {"type": "boolean", "description": what}


def _number(accepted: Number) -> dict[str, Any]:
    return {
        "type": "integer",
        "minimum": accepted.minimum,
        "maximum": accepted.maximum,
        "default": accepted.default,
        "description": accepted.about,
    }


__all__ = ["SpecError", "read_spec", "spec_schema", "spec_table"]
