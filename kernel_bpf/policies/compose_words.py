"""How a composed policy describes itself: its header comment, its tunables, its .toml.

Everything follows from the spec: the goal is the spec's, the algorithm and the limits are those of its primitives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kernel_bpf.policies.compose_code import bound_name, uses_history, uses_programs
from kernel_bpf.policies.manifest import write_manifest
from schedagent.core.policies.policy import CGROUP_WEIGHTS, READABLE, PolicyInfo, Tunable
from schedagent.core.policies.spec import (
    ANY_IDLE,
    BY_VTIME,
    DEADLINE,
    FIFO,
    LONGEST_FIRST,
    MEASURES,
    NUMBERS,
    ORDER_NUMBERS,
    PACK,
    PREVIOUS_CPU,
    PRIORITY,
    ROUND_ROBIN,
    SAME_LLC,
    SHARES,
    SHORTEST_FIRST,
    SPREAD,
    VTIME,
    Bounds,
    Number,
    PolicySpec,
    TaskClass,
)

SHORT_SLICE_US = 1000
"""Slices below this cost throughput on a saturated machine by design."""

SLICES_IN_BOUND = 10
"""How many slices fit into the starvation bound where it does not meddle with weights: at nice 5 beside nice 0 a task
waits for three slices.
"""

_ORDERS = {
    FIFO: "first come, first served",
    VTIME: "by weighted virtual time",
    DEADLINE: "by deadline: virtual time and a slack that grows with the CPU time since the task slept",
    LONGEST_FIRST: "what has the most CPU time still to come first, judged by earlier runs",
    SHORTEST_FIRST: "the shortest bursts first, as measured",
}
_PLACEMENTS = {
    PREVIOUS_CPU: "go back to the CPU they know if it idles",
    SAME_LLC: "take an idle CPU that shares a cache with the one they know, if there is one",
    SPREAD: "take a CPU whose whole core idles, if there is one",
    PACK: "take the lowest idle CPU",
}
_DISPATCHES = {
    PRIORITY: "A CPU serves the class of the highest priority that has a task for it",
    SHARES: "A CPU serves the class that used the least CPU time for its share",
    ROUND_ROBIN: "A CPU serves the classes round robin",
}
_LOSSES = {
    FIFO: "Tasks that sleep often wait behind those that compute.",
    VTIME: "A woken task waits for the end of a slice.",
    DEADLINE: "A program that sleeps on purpose is served before those that compute.",
    LONGEST_FIRST: "Without history the longest-first order is a round robin, and short tasks finish late.",
    SHORTEST_FIRST: "Where all bursts are alike the shortest-first order decides nothing.",
}


# --- tunables


@dataclass(frozen=True)
class Setting:
    """A tunable as both files describe it.

    Args:
        tunable: for the .toml.
        about: what it is, for the comment in the source.
    """

    tunable: Tunable
    about: str


def settings(spec: PolicySpec) -> Iterator[Setting]:
    """Yield every tunable, in the order of the spec."""
    bound = replace(NUMBERS["starvation_ms"], maximum=spec.starvation_max_ms)
    yield _setting("starvation_ms", bound, spec.starvation_ms)
    if spec.preempts:
        yield _setting("preempt_scan_cpus", NUMBERS["preempt_scan_cpus"], spec.preempt_scan_cpus, "u32")
    for kind in spec.classes:
        of_class = f"Class {kind.name}: " if len(spec.classes) > 1 else ""
        for name in ("slice_us", *_share(spec), *ORDER_NUMBERS[kind.order]):
            yield _setting(f"{kind.name}_{name}", NUMBERS[name], kind.number(name), about=of_class)
        for measure, bounds in kind.match.bounds():
            yield from _bounds(kind, measure, bounds)


def _share(spec: PolicySpec) -> tuple[str, ...]:
    return ("share",) if spec.dispatch == SHARES and len(spec.classes) > 1 else ()


def _setting(name: str, accepted: Number, value: int, c_type: str = "u64", about: str = "") -> Setting:
    description = _lower(accepted.about) if about else accepted.about
    effect = f"{about}{_lower(accepted.effect) if about else accepted.effect}"
    tunable = Tunable(name, c_type, accepted.unit, accepted.minimum, accepted.maximum, value, effect)
    return Setting(tunable, f"{about}{description}")


def _lower(sentence: str) -> str:
    return sentence if sentence.startswith("CPU") else sentence[0].lower() + sentence[1:]


def _bounds(kind: TaskClass, measure: str, bounds: Bounds) -> Iterator[Setting]:
    accepted = MEASURES[measure]
    c_type = "s32" if measure == "nice" else "u64"
    for side, value, words in (
        ("from", bounds.at_least, ("at least this", "fewer")),
        ("below", bounds.below, ("less than this", "more")),
    ):
        if value is not None:
            name = bound_name(kind, measure, side)
            effect = f"Class {kind.name} takes {words[1]} tasks."
            tunable = Tunable(name, c_type, accepted.unit, accepted.minimum, accepted.maximum, value, effect)
            yield Setting(tunable, f"Class {kind.name}: tasks with a {accepted.about} of {words[0]}.")


# --- words


def header(spec: PolicySpec) -> str:
    """The text of the header comment: name, goal, algorithm, when it loses."""
    return "\n\n".join(
        (
            f"{spec.name}: {_description(spec)}",
            f"Goal: {_goal(spec)}",
            f"Algorithm: {_algorithm(spec)}",
            f"Loses: {_limitations(spec)}",
            "Composed from a spec: schedagent compose.",
        )
    )


def _goal(spec: PolicySpec) -> str:
    return " ".join(spec.goal.split())


def _description(spec: PolicySpec) -> str:
    if len(spec.classes) == 1:
        return f"one class of tasks, {_ORDERS[spec.classes[0].order].partition(':')[0]}."
    names = [kind.name for kind in spec.classes]
    how = {PRIORITY: "by priority", SHARES: "by shares", ROUND_ROBIN: "round robin"}[spec.dispatch]
    return f"classes {', '.join(names[:-1])} and {names[-1]}, served {how}."


def _algorithm(spec: PolicySpec) -> str:
    return " ".join(_sentences(spec))


def _sentences(spec: PolicySpec) -> Iterator[str]:
    if len(spec.classes) > 1:
        for kind in spec.classes[:-1]:
            yield f"Class {kind.name} holds {_members(kind)}."
        yield f"Class {spec.classes[-1].name} holds all others."
        ranked = f": {', '.join(kind.name for kind in spec.by_rank)}" if spec.dispatch == PRIORITY else ""
        yield f"{_DISPATCHES[spec.dispatch]}{ranked}."
    for kind in spec.classes:
        whose = f"Within {kind.name} the order is" if len(spec.classes) > 1 else "The order is"
        yield f"{whose} {_ORDERS[kind.order]}{', with slices by weight' if kind.slice_by_weight else ''}."
        if kind.placement != ANY_IDLE:
            yield f"Tasks of {kind.name} that wake {_PLACEMENTS[kind.placement]}."
        if kind.preempts:
            yield f"Tasks of {kind.name} that wake and find no idle CPU interrupt a class of lower priority."
    yield "A task that waited for starvation_ms goes next; pinned tasks wait in a queue of their CPU."


def _members(kind: TaskClass) -> str:
    match = kind.match
    words = ["that the loader's map names"] if match.programs else []
    words += [f"of the cgroup {json.dumps(match.cgroup, ensure_ascii=False)}"] if match.cgroup else []
    if match.kthread is not None:
        words.append(f"that are {'' if match.kthread else 'no '}kernel threads")
    if match.pinned is not None:
        words.append(f"{'' if match.pinned else 'not '}pinned to one CPU")
    words += [f"with a {MEASURES[measure].about} {_range(bounds)}" for measure, bounds in match.bounds()]
    return f"tasks {' and '.join(words)}"


def _range(bounds: Bounds) -> str:
    if bounds.at_least is None:
        return f"below {bounds.below}"
    return f"from {bounds.at_least}" + (" on" if bounds.below is None else f" to below {bounds.below}")


def _limitations(spec: PolicySpec) -> str:
    losses = [_LOSSES[order] for order in _LOSSES if any(kind.order == order for kind in spec.classes)]
    if spec.dispatch == PRIORITY and len(spec.classes) > 1:
        losses.append("A class of low priority may get no more than the starvation bound grants.")
    if spec.preempts:
        losses.append("Preemption costs those of lower priority the rest of their slices.")
    if declares(spec):
        losses.append(f"It does not seek to satisfy the oracles for: {', '.join(declares(spec))}.")
    losses.append("All CPUs share the queue of a class, which costs warm caches on large machines.")
    return " ".join(losses)


def declares(spec: PolicySpec) -> tuple[str, ...]:
    """What the policy does not seek, see core.policy.DECLARABLE: weights of tasks and of cgroups, and throughput where
    slices are very short. cpu.max holds under all of them.

    Weights hold where tasks that differ in nothing but weight share a class by virtual time, no other class may keep
    them waiting, and a light one does not wait for so many slices that the starvation bound serves it. Those of
    cgroups hold where every order is by virtual time and no other class may keep them waiting.
    """
    kept = all(kind.order == VTIME for kind in spec.classes)
    kept &= len(spec.classes) == 1 or spec.dispatch != PRIORITY
    kept &= not any(True for kind in spec.classes for _ in kind.match.bounds())
    longest_us = max(kind.number("slice_us") for kind in spec.classes)
    served_rarely = spec.starvation_ms * 1000 >= SLICES_IN_BOUND * longest_us
    kept &= served_rarely
    brief = any(kind.number("slice_us") < SHORT_SLICE_US for kind in spec.classes)
    grouped = (len(spec.classes) == 1 or spec.dispatch != PRIORITY) and served_rarely
    grouped &= all(kind.order in BY_VTIME for kind in spec.classes)
    words = {"weights": not kept, "saturated machine": brief, CGROUP_WEIGHTS: not grouped}
    return tuple(word for word, is_declared in words.items() if is_declared)


def reads(spec: PolicySpec) -> tuple[str, ...]:
    """The inputs that the primitives of a spec go by, see core.policies.policy.READABLE."""
    inputs: set[str] = set()
    for kind in spec.classes:
        if kind.match.programs or kind.order == LONGEST_FIRST:
            inputs |= {"comm", "arguments", "map values"}
        if kind.order == LONGEST_FIRST or kind.match.runtime_ms is not None:
            inputs.add("runtime")
        if kind.match.cgroup:
            inputs.add("cgroup")
        if kind.match.nice is not None:
            inputs.add("nice")
    return tuple(name for name in READABLE if name in inputs)


# --- the .toml


def documentation(spec: PolicySpec) -> str:
    """The .toml that stands beside the source."""
    inputs = [*(["history"] if uses_history(spec) else []), *(["classes"] if uses_programs(spec) else [])]
    return write_manifest(
        PolicyInfo(
            name=spec.name,
            description=_goal(spec),
            target_workloads=spec.target_workloads,
            algorithm=_algorithm(spec),
            limitations=_limitations(spec),
            tunables=tuple(setting.tunable for setting in settings(spec)),
            inputs=tuple(inputs),
            source=Path(f"{spec.name}.bpf.c"),
            declares=declares(spec),
            reads=reads(spec),
            classes=class_numbers(spec),
        )
    )


def class_numbers(spec: PolicySpec) -> tuple[tuple[str, int], ...]:
    """What the loader fills in for the programs that a spec names: the place of their class."""
    return tuple((program, place) for place, kind in enumerate(spec.classes) for program in kind.match.programs)
