"""Mutants: one fault written into one policy, and a fair choice among many."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schedagent.core.policies.policy import PolicyInfo
from schedagent.core.policies.proposal import Origin
from tests.mutation.fault import Edit, Fault
from tests.mutation.operators import OPERATORS
from tests.mutation.program import Program


@dataclass(frozen=True)
class Mutant:
    """One broken policy.

    Args:
        policy: name of the policy it was made from, and its own.
        operator: name in OPERATORS.
        place: "file:line" of the first edit.
        function: the function it lies in; empty for the ops struct.
        what: the fault in words.
        diff: unified diff against the policy with its headers written in.
        info: the policy's documentation, with the mutant's own source path once it is written.
        text: its whole source.
        before: the source it was made from.
    """

    policy: str
    operator: str
    place: str
    function: str
    what: str
    diff: str
    info: PolicyInfo = field(repr=False)
    text: str = field(repr=False)
    before: str = field(repr=False)

    @property
    def original(self) -> Mutant:
        """The policy without the fault."""
        return dataclasses.replace(self, operator="", what="", diff="", text=self.before)

    def write(self, folder: Path) -> PolicyInfo:
        """Write the source to its own place in a folder and return the documentation that goes with it: a patch."""
        source = folder / hashlib.sha256(self.text.encode()).hexdigest()[:16] / f"{self.policy}.bpf.c"
        source.parent.mkdir(exist_ok=True)
        source.write_text(self.text)
        return dataclasses.replace(self.info, source=source, origin=Origin.PATCH)


def mutants_of(program: Program, operators: Iterable[str] = OPERATORS) -> Iterator[Mutant]:
    """Every mutant of a policy, operator by operator."""
    for operator in operators:
        for fault in OPERATORS[operator](program):
            yield _mutant(program, operator, fault)


def _mutant(program: Program, operator: str, fault: Fault) -> Mutant:
    text = apply(program.text, fault.edits)
    first = min(edit.start for edit in fault.edits)
    inside = [f.name for f in program.functions if f.body.start <= first < f.body.end]
    lines = difflib.unified_diff(program.text.splitlines(), text.splitlines(), lineterm="", n=1)
    return Mutant(
        policy=program.info.name,
        operator=operator,
        place=str(program.place(first)),
        function=inside[0] if inside else "",
        what=fault.what,
        diff="\n".join(line for line in lines if not line.startswith(("---", "+++"))),
        info=program.info,
        text=text,
        before=program.text,
    )


def apply(text: str, edits: Sequence[Edit]) -> str:
    """Return the text with all edits made, the last one first, so that offsets stay right."""
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def fair_order(mutants: Sequence[Mutant], seed: int) -> list[Mutant]:
    """Order mutants so that each operator, and within it each place, gets its turn; the seed decides the rest.

    The headers are shared by many policies, so the first mutants of a plain shuffle would mostly test the same lines.
    """
    draw = random.Random(seed)
    piles: defaultdict[str, defaultdict[tuple[str, str], list[Mutant]]] = defaultdict(lambda: defaultdict(list))
    for mutant in mutants:
        piles[mutant.operator][mutant.place, mutant.what].append(mutant)
    queues = {operator: _rounds(list(places.values()), draw) for operator, places in sorted(piles.items())}
    chosen: list[Mutant] = []
    while queues:
        turn = {operator: next(queue, None) for operator, queue in queues.items()}
        chosen += [mutant for mutant in turn.values() if mutant]
        queues = {operator: queue for operator, queue in queues.items() if turn[operator]}
    return chosen


def _rounds(places: list[list[Mutant]], draw: random.Random) -> Iterator[Mutant]:
    """One mutant of each place, in random order, then a second one of each, and so on."""
    draw.shuffle(places)
    for place in places:
        draw.shuffle(place)
    for turn in range(max(map(len, places), default=0)):
        yield from (place[turn] for place in places if turn < len(place))
