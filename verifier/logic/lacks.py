"""What an object lacks if the program that its author loads it with does not load it.

    sentence(image, unfilled_maps(walk), {"slice_us": 5000})

Most schedulers come with a loader: it sets constants and flags, runs programs of the type syscall, and fills maps. Here
an object is judged and run as it is, and its report begins by saying so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from schedagent.core.policies.rodata import NOTHING_SET, Rodata
from verifier.logic.walk.calls import names
from verifier.logic.walk.events import Walk
from verifier.logic.walk.terms import Term, TermKind, linear
from verifier.object.image import BpfImage

_LOOKS = names(
    "bpf_map_lookup_elem bpf_map_lookup_percpu_elem bpf_map_pop_elem bpf_map_peek_elem bpf_for_each_map_elem "
    "bpf_user_ringbuf_drain"
)
_PUTS = names("bpf_map_push_elem bpf_ringbuf_reserve bpf_ringbuf_output")
_TAKES = names("bpf_map_pop_elem bpf_user_ringbuf_drain")
_QUEUES = frozenset({22, 23, 27, 31})
"""BPF_MAP_TYPE_QUEUE, _STACK, _RINGBUF and _USER_RINGBUF."""

_ARRAYS = frozenset({2, 6})
"""BPF_MAP_TYPE_ARRAY and _PERCPU_ARRAY of include/uapi/linux/bpf.h."""

_UNSIZED = frozenset({4, 7, 29, 32})
"""Of PERF_EVENT_ARRAY, STACK_TRACE, TASK_STORAGE and CGRP_STORAGE nobody has to say how many elements they hold."""

_MOST_NAMED = 5
_LOADER_PREFIX = "__"
"""Names that begin so are set by our loader, too: the kernel's enumerators, by the convention of the scx headers."""


def sentence(
    image: BpfImage,
    unfilled: Sequence[str],
    given: Collection[str],
    assumed: Rodata = NOTHING_SET,
    handed_over: bool = False,
) -> str:
    """Return in one sentence what the object lacks, and what is assumed of it.

    Args:
        unfilled: maps that none of its programs fills.
        given: variables that are set before it is loaded.
        assumed: what somebody says that its loader sets; it is in the object already.
        handed_over: whether it hands tasks to a program in user space, see `hands_over`.
    """
    if not image.ops:
        return ""
    given = {*given, *(name for name, _value in assumed.constants)}
    constants = [each.name for each in image.variables.values()
                 if each.section.startswith(".rodata") and each.volatile and not any(each.content)
                 and not each.name.startswith(_LOADER_PREFIX) and each.name not in given]  # fmt: skip
    programs = [
        each.name for each in image.functions.values() if each.is_program and each.section.startswith("syscall")
    ]
    unsized = [each.name for each in image.maps.values() if not each.max_entries and each.type not in _UNSIZED]
    lacking = [
        _counted(constants, "constant that is 0", "constants that are 0"),
        _counted(programs, "program that nobody runs", "programs that nobody runs"),
        _counted(unsized, "map without a size", "maps without a size"),
        _counted(unfilled, "map that nobody fills", "maps that nobody fills"),
    ]
    listed = "; ".join(part for part in lacking if part)
    judged = f"it is judged as it is, with flags {image.ops[0].numbers.get('flags', 0):#x}"
    judged += "; it needs its own program in user space, which hands tasks back that it is given" if handed_over else ""
    judged += f"; assumed of its loader: {assumed.summary}" if assumed else ""
    lacks = f"Without its own loader it lacks {listed}" if listed else "It needs no loader of its own"
    return f"{lacks}; {judged}."


def unfilled_maps(image: BpfImage, walk: Walk) -> tuple[str, ...]:
    """Return the maps that programs look at, and into which none of them puts an element, sorted.

    An array has all its elements from the start, and what is stored into them in place is not followed.
    """
    looked, touched = set[str](), set[str]()
    for event in walk.events:
        seen = 1 if event.name in _LOOKS else 0
        looked.update(name for term in event.arguments[:seen] for name in _maps(term))
        touched.update(name for term in event.arguments[seen:] for name in _maps(term))
    arrays = {each.name for each in image.maps.values() if each.type in _ARRAYS}
    return tuple(sorted(looked - touched - arrays))


def hands_over(image: BpfImage, walk: Walk) -> bool:
    """Whether programs put elements into a queue that none of them takes from, and take from one that none fills."""
    put, taken = set[str](), set[str]()
    for event in walk.events:
        seen = put if event.name in _PUTS else taken if event.name in _TAKES else None
        if seen is not None and event.arguments:
            seen.update(name for name in _maps(event.arguments[0]) if image.maps[name].type in _QUEUES)
    return bool(put - taken) and bool(taken - put)


def _maps(term: Term) -> Iterator[str]:
    """Yield the maps whose memory an address lies in, or that it stands for."""
    waiting = [term]
    while waiting:
        for atom, _factor in linear(waiting.pop())[1]:
            if atom.kind is TermKind.MAP:
                yield atom.name
            elif atom.kind is TermKind.CALL and atom.name in _LOOKS:
                waiting += atom.parts[2][:1]


def _counted(named: Sequence[str], singular: str, plural: str) -> str:
    if not named:
        return ""
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return f"{len(named)} {singular if len(named) == 1 else plural} ({', '.join(named[:_MOST_NAMED])}{more})"
