"""Random valid specs: a hypothesis strategy for all that PolicySpec can say, and a deterministic sample of it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from schedagent.core.policies.spec import (
    BY_VTIME,
    DISPATCHES,
    MAX_CLASSES,
    MEASURES,
    NUMBERS,
    ORDER_NUMBERS,
    ORDERS,
    PLACEMENTS,
    PRIORITY,
    PROGRAM_KINDS,
    SHARES,
    STARVATION_MAX_MS_OF_MEASURED,
    Bounds,
    Match,
    PolicySpec,
    TaskClass,
)
from schedagent.core.trials.workload import WorkloadClass

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,14}", fullmatch=True)
GOALS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=200).filter(
    lambda text: text.strip() and text.isprintable() and "*/" not in text and "/*" not in text
)
CGROUPS = st.text(st.characters(codec="ascii", categories=("L", "N", "P"), exclude_characters="/"), max_size=40)
PROGRAMS = st.one_of(st.sampled_from(sorted(PROGRAM_KINDS)), GOALS.map(lambda text: text[:80]).filter(str.strip))


@st.composite
def bounds(draw: st.DrawFn, measure: str) -> Bounds:
    """Bounds of one measure: one side, or both."""
    accepted = MEASURES[measure]
    low, high = sorted(
        draw(st.lists(st.integers(accepted.minimum, accepted.maximum), min_size=2, max_size=2, unique=True))
    )
    return draw(st.sampled_from((Bounds(low), Bounds(None, high), Bounds(low, high))))


@st.composite
def matches(draw: st.DrawFn, programs: tuple[str, ...]) -> Match:
    """What tasks a class takes; never everything."""
    given_measures = draw(st.lists(st.sampled_from(sorted(MEASURES)), unique=True, max_size=3))
    match = Match(
        programs=programs,
        cgroup=draw(st.one_of(st.just(""), CGROUPS)),
        pinned=draw(st.sampled_from((None, None, True, False))),
        kthread=draw(st.sampled_from((None, None, True, False))),
        **{measure: draw(bounds(measure)) for measure in given_measures},
    )
    return Match(kthread=True) if match.is_empty else match


def numbers(name: str, most: int | None = None) -> st.SearchStrategy[int | None]:
    """A number of its whole range, or none."""
    accepted = NUMBERS[name]
    return st.one_of(st.none(), st.integers(accepted.minimum, min(accepted.maximum, most or accepted.maximum)))


@st.composite
def task_classes(
    draw: st.DrawFn, name: str, dispatch: str, starvation_ms: int, programs: tuple[str, ...], *, last: bool
) -> TaskClass:
    """One class."""
    order = draw(st.sampled_from(ORDERS))
    fields = {field: draw(numbers(field)) for field in ORDER_NUMBERS[order] if field != "patience_ms"}
    if "patience_ms" in ORDER_NUMBERS[order]:
        fields["patience_ms"] = draw(numbers("patience_ms", starvation_ms))
    if dispatch == PRIORITY:
        fields["priority"] = draw(numbers("priority"))
    if dispatch == SHARES:
        fields["share"] = draw(numbers("share"))
    return TaskClass(
        name=name,
        match=Match() if last else draw(matches(programs)),
        order=order,
        placement=draw(st.sampled_from(PLACEMENTS)),
        slice_by_weight=order not in BY_VTIME and draw(st.booleans()),
        slice_us=draw(numbers("slice_us")),
        **fields,
    )


@st.composite
def specs(draw: st.DrawFn) -> PolicySpec:
    """Any spec that compose must turn into a policy that passes the verifier."""
    names = draw(st.lists(NAMES, min_size=1, max_size=MAX_CLASSES, unique=True))
    dispatch = draw(st.sampled_from(DISPATCHES))
    starvation_ms = draw(st.integers(NUMBERS["starvation_ms"].minimum, STARVATION_MAX_MS_OF_MEASURED))
    last = len(names) - 1
    programs = draw(st.lists(PROGRAMS, max_size=4, unique=True))
    classes = [
        draw(task_classes(name, dispatch, starvation_ms, tuple(programs[place::3]), last=place == last))
        for place, name in enumerate(names)
    ]
    spec = PolicySpec(
        name="drawn_" + draw(st.from_regex(r"[a-z0-9]{0,7}[a-su-z0-9]", fullmatch=True)),  # C has names in _t
        goal=draw(GOALS),
        classes=tuple(classes),
        target_workloads=tuple(draw(st.lists(st.sampled_from([k.value for k in WorkloadClass]), min_size=1))),
        dispatch=dispatch,
        starvation_ms=starvation_ms,
        preempt_scan_cpus=draw(st.integers(1, NUMBERS["preempt_scan_cpus"].maximum)),
    )
    if draw(st.booleans()):
        spec = replace(spec, starvation_ms=draw(st.integers(starvation_ms, spec.starvation_max_ms)))
    return draw(preempting(spec)) if dispatch == PRIORITY else spec


@st.composite
def preempting(draw: st.DrawFn, spec: PolicySpec) -> PolicySpec:
    """The spec, where some of the classes that have one below them preempt."""
    lowest = spec.by_rank[-1]
    classes = tuple(kind if kind is lowest else replace(kind, preempts=draw(st.booleans())) for kind in spec.classes)
    return replace(spec, classes=classes)


def drawn(count: int) -> list[PolicySpec]:
    """Return the same sample each time, all of them different."""
    found: dict[str, PolicySpec] = {}

    @settings(
        max_examples=count * 2,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(specs())
    def collect(spec: PolicySpec) -> None:
        found.setdefault(repr(spec), spec)

    collect()
    return list(found.values())[:count]
