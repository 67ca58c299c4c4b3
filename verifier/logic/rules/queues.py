"""DSQ ids as the object forms them, and whether two of them may mean the same queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from verifier.logic.walk.calls import CPU_ARGUMENTS
from verifier.logic.walk.facts import Facts, range_of
from verifier.logic.walk.terms import MASK32, Term, TermKind, describe, linear, low_half, number, signed

_BUILTIN = 1 << 63
_LOCAL_ON = _BUILTIN | 1 << 62
_CPU_BITS = 32
_LIKELY_CPUS = 512
"""To tell families apart: ids `base + cpu` are taken to lie within so many of their base."""


class QueueKind(StrEnum):
    LOCAL = "SCX_DSQ_LOCAL"
    LOCAL_ON = "SCX_DSQ_LOCAL_ON"
    GLOBAL = "SCX_DSQ_GLOBAL"
    USER = "user"
    OPAQUE = "opaque"
    BAD = "bad"


@dataclass(frozen=True)
class Queue:
    """One DSQ id, or a family of them.

    Args:
        term: what the object passes.
        constant: the base of a family, or the whole id.
        addends: (term, factor) added to it; none for a single DSQ.
        cpu: for LOCAL_ON, the CPU.
        joined: whether paths were joined before, so that what they tested is not known.
    """

    kind: QueueKind
    term: Term
    constant: int = 0
    addends: tuple[tuple[Term, int], ...] = ()
    cpu: Term | None = None
    joined: bool = False

    @property
    def builtin(self) -> bool:
        return self.kind in (QueueKind.LOCAL, QueueKind.LOCAL_ON, QueueKind.GLOBAL)

    @property
    def single(self) -> bool:
        return self.kind is QueueKind.USER and not self.addends

    @property
    def family(self) -> bool:
        return self.kind is QueueKind.USER and bool(self.addends)

    def __str__(self) -> str:
        if self.kind is QueueKind.LOCAL_ON and self.cpu is not None:
            return f"SCX_DSQ_LOCAL_ON | {describe(self.cpu)}"
        if self.builtin:
            return str(self.kind.value)
        label = str(self.term.parts[1]) if self.term.is_const else ""
        return f"DSQ {label} ({number(self.constant)})" if label else f"DSQ {describe(self.term)}"


def decode(term: Term, enums: Mapping[str, int], merged: Mapping[Term, set[Term]], facts: Facts) -> tuple[Queue, ...]:
    """Return the DSQs that an id may mean, by what a path knows of it; several where paths were joined."""
    inner = low_half(term)
    if inner in merged:
        values = [value for value in merged[inner] if value not in merged and _is_possible(value, inner, facts)]
        queues = [replace(queue, joined=True) for value in values for queue in decode(value, enums, {}, facts)]
        return tuple(queues) if queues else (Queue(QueueKind.OPAQUE, term),)
    return (_decode_one(term, enums),)


def _is_possible(value: Term, joined: Term, facts: Facts) -> bool:
    """Whether what a path tested since leaves a number among those that were joined: `if (cpu < 0) return`."""
    if not value.is_const:
        return True
    known = range_of(facts, 32, joined)
    low_bits = value.value & MASK32
    return known.low <= low_bits <= known.high and known.signed_low <= signed(low_bits, 32) <= known.signed_high


def _decode_one(term: Term, enums: Mapping[str, int]) -> Queue:
    if term.is_const:
        return _decode_number(term, enums)
    constant, addends = _sum(term)
    if constant >> _CPU_BITS == MASK32:  # something less a small number, which is no bit of the kernel's
        opaque = any(_is_opaque(atom) for atom, _factor in addends)
        return Queue(QueueKind.OPAQUE if opaque else QueueKind.USER, term, constant, addends)
    if constant & _LOCAL_ON == _LOCAL_ON and len(addends) == 1:
        return Queue(QueueKind.LOCAL_ON, term, cpu=low_half(addends[0][0]))
    if constant & _BUILTIN:
        return Queue(QueueKind.BAD, term, constant, addends)
    if len(addends) == 1 and constant == 0 and _is_opaque(addends[0][0]):
        return Queue(QueueKind.OPAQUE, term, 0, addends)
    return Queue(QueueKind.USER, term, constant, addends)


def _decode_number(term: Term, enums: Mapping[str, int]) -> Queue:
    value = term.value
    if not value & _BUILTIN:
        return Queue(QueueKind.USER, term, value)
    if value == enums.get("SCX_DSQ_LOCAL", _BUILTIN | 2):
        return Queue(QueueKind.LOCAL, term, value)
    if value == enums.get("SCX_DSQ_GLOBAL", _BUILTIN | 1):
        return Queue(QueueKind.GLOBAL, term, value)
    if value & _LOCAL_ON == _LOCAL_ON:
        return Queue(QueueKind.LOCAL_ON, term, value, cpu=None)
    return Queue(QueueKind.BAD, term, value)


def _sum(term: Term) -> tuple[int, tuple[tuple[Term, int], ...]]:
    """Split an id into base and addends; `base | x` is a sum too, and extensions do not matter."""
    inner = low_half(term)
    if inner.kind is TermKind.OP and inner.parts[0] == "or":
        left, right = _sum(inner.parts[1]), _sum(inner.parts[2])
        constant, addends = left[0] | right[0], left[1] + right[1]
    else:
        constant, addends = linear(inner)
    if term.kind is TermKind.ZEXT:
        constant &= MASK32
    return constant, tuple((low_half(atom), factor) for atom, factor in addends)


def _is_opaque(term: Term) -> bool:
    """Whether an id comes from memory, or from a call that gives no CPU."""
    return term.kind in (TermKind.LOAD, TermKind.UNKNOWN) or (term.kind is TermKind.CALL and "cpu" not in term.name)


def is_cpu(term: Term) -> bool:
    """Whether a value is the number of a CPU, as far as its origin shows."""
    term = low_half(term)
    if term.kind is TermKind.ARGUMENT:
        return term.parts[1] in CPU_ARGUMENTS
    if term.kind in (TermKind.CALL, TermKind.PURE):
        return "cpu" in term.name or term.name == "bpf_get_smp_processor_id"
    return term.kind is TermKind.FIELD and "cpu" in term.name


def span(queue: Queue) -> tuple[int, int] | None:
    """Return the bounds of a family's ids, None if they are not known."""
    low = high = queue.constant
    for atom, factor in queue.addends:
        known = range_of(Facts(), 32, atom)
        top = known.high
        if is_cpu(atom) or atom.kind is TermKind.INDEX:
            top = min(top, _LIKELY_CPUS - 1)
        if top >= 1 << 31 or factor >> 63:
            return None
        low, high = low + known.low * factor, high + top * factor
    return low, high


def may_be(queue: Queue, other: Queue) -> bool:
    """Whether two user DSQ ids may be equal."""
    if QueueKind.OPAQUE in (queue.kind, other.kind):
        return True
    if queue.single and other.single:
        return queue.constant == other.constant
    if queue.constant == other.constant and [f for _a, f in queue.addends] == [f for _a, f in other.addends]:
        return True
    spans = span(queue), span(other)
    if spans[0] is None or spans[1] is None:
        return _open_ended(queue, other)
    return spans[0][0] <= spans[1][1] and spans[1][0] <= spans[0][1]


def _open_ended(queue: Queue, other: Queue) -> bool:
    """Families without bounds: of one shape they are told apart by their base, others may overlap."""
    if queue.family and other.family:
        if len(queue.addends) != 1 or len(other.addends) != 1:
            return True
        steps = queue.addends[0][1], other.addends[0][1]
        if steps == (1, 1):
            return queue.constant == other.constant
        return steps[0] != steps[1] or (queue.constant - other.constant) % steps[0] == 0
    family, rest = (queue, other) if queue.family else (other, queue)
    return rest.constant >= family.constant


def _is_step_of(family: Queue, single: Queue) -> bool:
    """Whether a single id is `base + n * step` of a family by class; families by CPU are too long."""
    if not family.family or len(family.addends) != 1 or not 1 < family.addends[0][1] < 1 << 31:
        return False
    distance, bounds = single.constant - family.constant, span(family)
    return distance >= 0 and distance % family.addends[0][1] == 0 and (bounds is None or single.constant <= bounds[1])


def must_be(queue: Queue, other: Queue) -> bool:
    """Whether two ids certainly meet: the same number, or families of one shape over CPUs."""
    if queue.single and other.single:
        return queue.constant == other.constant
    if queue.single or other.single:
        return _is_step_of(*((other, queue) if queue.single else (queue, other)))
    if not (queue.family and other.family) or queue.constant != other.constant:
        return False
    shapes = [
        [(factor, is_cpu(atom) or atom.kind is TermKind.INDEX) for atom, factor in q.addends] for q in (queue, other)
    ]
    return queue.addends == other.addends or (shapes[0] == shapes[1] and all(cpu for _factor, cpu in shapes[0]))
