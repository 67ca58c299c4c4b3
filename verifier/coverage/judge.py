"""Rule 33: what of a policy never ran while it was proved, and which of that is held against it.

Not held against it is what the kernel's own verifier proved to be out of reach (it removed the probe), and branches
that no input decides: a clamp that nothing met, a race that was not lost, a lookup in the policy's own storage that
fails only without memory. A branch that an input decides (guards.py) has to be seen on both sides, unless the side that
was not seen only gives up; a queue that was created has to be entered, and an insert into a queue of the policy's
own has to run, whatever decides it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from schedagent.core.policies.policy import Standing
from schedagent.core.rules import NEVER_RAN
from schedagent.core.verification import Coverage, Finding, Place, Severity
from verifier.coverage.guards import Guards, Input, file_of, guards_of
from verifier.coverage.probes import Probe, Probes, Side
from verifier.logic.walk.code import Code, Op
from verifier.logic.walk.events import place_of
from verifier.object.image import BpfImage, Line, Ref

SHOWN = 100
"""Most places that a report names."""

UNCALLED = frozenset({"exit", "dump", "dump_cpu", "dump_task"})
"""Callbacks that may stay uncalled: they end or describe a policy, and decide nothing."""

_INSERTS = ("scx_bpf_dsq_insert", "__scx_bpf_dsq_insert", "scx_bpf_dispatch", "scx_bpf_dsq_move")
_MOVES = "scx_bpf_dsq_move"
"""Moves name the queue in their third argument, inserts in their second."""

_TAKES = ("scx_bpf_dsq_move_to_local",)
_GIVES_UP = frozenset({"scx_bpf_error_bstr", "scx_bpf_exit_bstr"})
_BUILTIN = "scx_dsq_id_flags."
_HEADERS = "include/"
_READ_BY_HEADERS = frozenset({"comm", "arguments", "map values"})
"""Inputs of identity.bpf.h and what is built on it: of the tasks of proving/strangers.py all are brought about that
the loader's maps can tell apart."""


@dataclass(frozen=True)
class Ran:
    """What the proving ground showed of a policy's run.

    Args:
        passed: numbers of the probes that were passed.
        kept: numbers of those that the kernel's verifier did not remove.
        entered: DSQ id -> tasks that entered it; None if the kernel did not show.
        why: why any of it is not known; empty if it is.
    """

    passed: frozenset[int]
    kept: frozenset[int]
    entered: Mapping[int, int] | None
    why: str = ""


@dataclass(frozen=True)
class Judgement:
    """What is reported, and what is held against the policy."""

    coverage: Coverage
    findings: tuple[Finding, ...]


def judge(
    image: BpfImage,
    probes: Probes | None,
    ran: Ran,
    standing: Standing,
    *,
    own_headers: bool = False,
    known: bool = False,
    kept: frozenset[str] = frozenset(),
) -> Judgement:
    """Judge what of an object ran.

    Args:
        probes: of its copy; None if none could be made.
        own_headers: whether what stands in include/ is what this program brought, unchanged by the source.
        known: whether the source is what our composer writes, so that its findings are only shown.
        kept: functions of our headers that are taken as a whole (logic.taint.limits).
    """
    severity = {Standing.DERIVED: Severity.ERROR, Standing.FOREIGN: Severity.NOTE}.get(standing)
    if known and severity:
        severity = Severity.NOTE
    if probes is None or ran.why or ran.entered is None:
        unknown = Coverage(why=ran.why or "the kernel did not show its queues")
        return Judgement(unknown, (Finding(NEVER_RAN, severity, "", "", 0, unknown.summary),) if severity else ())
    seen = _Seen(image, probes, ran, kept)
    problems = seen.problems(own_headers=own_headers) if severity else ()
    findings = tuple(_finding(severity, problem) for problem in problems) if severity else ()
    return Judgement(seen.coverage(), findings)


@dataclass(frozen=True)
class _Problem:
    member: str
    line: Line | None
    text: str


def _finding(severity: Severity, problem: _Problem) -> Finding:
    file, row, wrapper = place_of(problem.line)
    return Finding(NEVER_RAN, severity, problem.member, file, row, problem.text, wrapper)


class _Seen:
    """An object with what ran of it."""

    def __init__(self, image: BpfImage, probes: Probes, ran: Ran, kept: frozenset[str]) -> None:
        self._image = image
        self._probes = probes
        self._ran = ran
        self._kept = kept
        self._number = {(probe.function, probe.side, probe.index): place for place, probe in enumerate(probes.probes)}
        self._member = {name: member for ops in image.ops for member, name in ops.callbacks.items()}
        self._executed = {name: self._reached(code, ran.passed) for name, code in probes.codes.items()}
        self._possible = {name: self._reached(code, ran.kept) for name, code in probes.codes.items()}

    def coverage(self) -> Coverage:
        """The figures for people: sides of branches, and queues."""
        sides = [probe for probe in self._open() if probe.side is not Side.ENTRY]
        never = [probe for probe in sides if not self._passed(probe)]
        places = dict.fromkeys(_place(self._probes.line(probe)) for probe in never)
        entered = self._ran.entered or {}
        return Coverage(
            branches=len(sides),
            ran=len(sides) - len(never),
            never=tuple(place for place in places if place)[:SHOWN],
            queues=len(entered),
            entered=sum(count > 0 for count in entered.values()),
        )

    def problems(self, *, own_headers: bool) -> Iterator[_Problem]:
        """Yield what is held against the policy."""
        yield from self._uncalled()
        guards = guards_of(self._image, self._probes.codes, self._kept)
        for probe in self._open():
            if probe.side is Side.ENTRY or self._passed(probe) or probe.index not in self._executed[probe.function]:
                continue
            yield from self._unseen(probe, guards, own_headers=own_headers)
        yield from self._inserts()
        for queue, count in sorted((self._ran.entered or {}).items()):
            if not count:
                yield _Problem("", None, f"no task ever entered queue {queue}, which the policy created")

    def _open(self) -> Iterator[Probe]:
        """The probes that may be passed."""
        return (probe for number, probe in enumerate(self._probes.probes) if number in self._ran.kept)

    def _passed(self, probe: Probe) -> bool:
        return self._number[probe.function, probe.side, probe.index] in self._ran.passed

    def _reached(self, code: Code, passable: Collection[int]) -> frozenset[int]:
        """The instructions of a function that these probes lead to."""
        if self._number[code.name, Side.ENTRY, 0] not in passable:
            return frozenset()
        return _closure(code, 0, lambda side, index: self._number[code.name, side, index] in passable)

    def _uncalled(self) -> Iterator[_Problem]:
        for probe in self._open():
            member = self._member.get(probe.function, "")
            is_program = self._image.functions[probe.function].is_program
            if (
                probe.side is Side.ENTRY
                and (member or is_program)
                and not self._passed(probe)
                and member not in UNCALLED
            ):
                name = member or probe.function
                yield _Problem(name, self._probes.line(probe), f"{name} never ran while the policy was proved")

    def _unseen(self, probe: Probe, guards: Guards, *, own_headers: bool) -> Iterator[_Problem]:
        """A branch that was met, and one side of it never taken."""
        inputs = guards[probe.function, probe.index]
        if not inputs or (own_headers and self._in_headers(probe, inputs)):
            return
        if self._member.get(probe.function) in UNCALLED or self._gives_up(probe):
            return
        side = "taken" if probe.side is Side.TAKEN else "not taken"
        names = ", ".join(sorted({given.name for given in inputs}))
        text = f"this branch, which {names} decides, was never {side} while the policy was proved"
        yield _Problem(self._name(probe.function), self._probes.line(probe), text)

    def _in_headers(self, probe: Probe, inputs: Collection[Input]) -> bool:
        """Whether a branch of one of our headers is decided by what a header of ours has read.

        The line alone says little: the compiler joins a condition of the author's with the line it was handed to.
        """
        branch = file_of(self._probes.codes[probe.function].ops[probe.index])
        read = (given.name in _READ_BY_HEADERS and given.file.startswith(_HEADERS) for given in inputs)
        return branch.startswith(_HEADERS) and all(read)

    def _gives_up(self, probe: Probe) -> bool:
        """Whether all that lies behind a side of a branch, and only there, is the end of init with an error."""
        code = self._probes.codes[probe.function]
        if self._member.get(probe.function) != "init":
            return False
        behind = _closure(code, probe.target, lambda _side, _index: True)
        calls = [code.ops[index] for index in behind if code.ops[index].kind == "call"]
        stores = [code.ops[index] for index in behind if code.ops[index].kind in ("store", "atomic")]
        return all(_name(op) in _GIVES_UP for op in calls) and all(op.dst == 10 for op in stores)

    def _inserts(self) -> Iterator[_Problem]:
        """Inserts into queues of the policy's own that never ran."""
        for name, code in self._probes.codes.items():
            for index in sorted(self._possible[name] - self._executed[name]):
                op = code.ops[index]
                if _inserts(op) and not _into_builtin(code, index):
                    text = f"{_name(op)} never ran while the policy was proved"
                    yield _Problem(self._name(name), op.line, text)

    def _name(self, function: str) -> str:
        return self._member.get(function, function)


def _closure(code: Code, start: int, passable: object) -> frozenset[int]:
    """The instructions that execution may reach from one, through sides of branches that are passable."""
    assert callable(passable)
    reached: set[int] = set()
    waiting = [start]
    while waiting:
        index = waiting.pop()
        if index in reached:
            continue
        reached.add(index)
        op = code.ops[index]
        if op.kind in ("branch", "may_goto"):
            waiting += [op.target] if passable(Side.TAKEN, index) else []
            waiting += [index + 1] if passable(Side.NOT_TAKEN, index) else []
        else:
            waiting += code.next_of(index)
    return frozenset(reached)


def _name(op: Op) -> str:
    """The kfunc or helper that a call names, without its ___suffix."""
    return op.raw.ref.name.partition("___")[0] if op.raw.ref else ""


def _inserts(op: Op) -> bool:
    if op.kind != "call" or op.raw.ref is None or op.raw.ref.kind is not Ref.KFUNC:
        return False
    return _name(op).startswith(_INSERTS) and not _name(op).startswith(_TAKES)


def _into_builtin(code: Code, index: int) -> bool:
    """Whether the queue of an insert is one of the kernel's own, loaded by its name just before.

    The struct form of the vtime insert has its queue in memory, and goes to none of them (rule 3).
    """
    register = 3 if _name(code.ops[index]).startswith(_MOVES) else 2
    for before in range(index - 1, -1, -1):
        op = code.ops[before]
        if op.kind in ("branch", "jump", "exit", "call", "may_goto") or before + 1 in code.joins:
            return False
        if op.kind in ("alu", "load", "imm64") and op.dst == register:
            ref = op.raw.ref
            return ref is not None and ref.kind is Ref.ENUM and ref.name.startswith(_BUILTIN)
    return False


def _place(line: Line | None) -> Place | None:
    return Place(line.file.removeprefix("./"), line.line) if line else None
