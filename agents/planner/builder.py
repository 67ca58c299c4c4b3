"""The policy builder: makes a candidate of a proposal, by one of its origins, or reports what is wrong with it.

    configure   tunables of a policy of the library
    compose     a spec of primitives -> BPF C
    patch       a unified diff against a policy of the library
    generate    BPF C as it was written
    brought     BPF C that a person brought, under its own documentation
    program     a program that loads its policy itself

Proposals come from a model as likely as not. Nothing is believed here: what comes out is a candidate like any other,
and only the verifier decides about it. Errors are for the model to act upon: they name what is wrong, and what is
accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from agents.planner.inputs import fill
from agents.planner.unified_diff import apply_diff
from kernel_bpf.build.source import check_source_text, read_source
from kernel_bpf.policies import policy_text
from kernel_bpf.policies.compose import compose
from kernel_bpf.policies.library import read_manifest
from kernel_bpf.policies.manifest import write_manifest
from schedagent.core.errors import NameTaken, PolicyError, SpecError
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.policies.proposal import DerivedPolicy, Origin, Proposal
from schedagent.core.policies.spec import NAME, PROGRAM_KINDS, PolicySpec, spec_error
from schedagent.core.policies.spec_reader import read_spec, spec_table
from schedagent.core.terminal.printable import printable
from schedagent.core.trials.workload import WorkloadProfile

MOST_NAMESAKES = 99
LONGEST_SENTENCE = 400
_NAME_BYTES = 15
_SHOWN_PROGRAMS = 12

KIND_NUMBERS = (("short_bursts", 1), ("workers", 2), ("background", 3))
"""How a generated policy that includes known_class.bpf.h finds its programs sorted: as the bundled layered does."""


class PolicyShelf(Protocol):
    """Where policies are found, and where those that are made here are kept."""

    def __getitem__(self, name: str) -> PolicyInfo: ...

    def __contains__(self, name: object) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def keep(self, made: DerivedPolicy) -> PolicyInfo: ...


@dataclass(frozen=True)
class Draft:
    """The two texts of a policy under one of its possible names."""

    source: str
    manifest: str
    spec: Mapping[str, Any] | None = None


class PolicyBuilder:
    """Makes candidates.

    Args:
        shelf: the library of the run.
        run_id: noted on every policy that is made; empty if no run asks.
    """

    def __init__(self, shelf: PolicyShelf, run_id: str = "") -> None:
        self._shelf = shelf
        self._run_id = run_id

    def make(self, proposal: Proposal, profile: WorkloadProfile) -> CandidatePolicy:
        """Return the candidate that a proposal asks for, with what the profile measured in its maps.

        A new policy is kept before it is returned. Asked twice for the same, the same candidate comes out, so that a
        resumed run may ask again.

        Raises:
            TunableError: a tunable does not exist, or is out of range.
            SpecError: with every mistake of the spec, each by the name of its field.
            PolicyError: no such policy, a diff that does not apply, or a source that is none.
        """
        if proposal.origin is Origin.PROGRAM:
            if proposal.program is None:
                raise PolicyError("the proposal has no program", "a person names it: --scheduler")
            return CandidatePolicy.of_program(proposal.program, sentence(proposal.reason))
        made = {
            Origin.CONFIGURE: self._known,
            Origin.COMPOSE: self._compose,
            Origin.PATCH: self._patch,
            Origin.GENERATE: self._generate,
            Origin.BROUGHT: self._brought,
        }[proposal.origin]
        info = made(proposal, profile)
        candidate = fill(info, info.configured(proposal.tunables), profile)
        return replace(
            candidate,
            origin=Origin(proposal.origin),
            reason=sentence(proposal.reason),
            expected=sentence(proposal.expected),
            refuted_by=sentence(proposal.refuted_by),
        )

    # --- what a person names

    def _brought(self, proposal: Proposal, _profile: WorkloadProfile) -> PolicyInfo:
        info = read_manifest(proposal.manifest, f"the documentation of {proposal.policy[:100]}", Path())
        check_source_text(proposal.source.encode(errors="surrogatepass"))

        def draft(name: str) -> Draft:
            return Draft(proposal.source, write_manifest(replace(info, name=name)))

        return self._keep(Origin.BROUGHT, "", short_name(proposal.policy), draft)

    # --- configure

    def _known(self, proposal: Proposal, _profile: WorkloadProfile) -> PolicyInfo:
        if proposal.policy not in self._shelf:
            known = ", ".join(self._shelf) or "none"
            raise PolicyError(f"there is no policy {proposal.policy[:100]!r} in the library", f"there are: {known}")
        return self._shelf[proposal.policy]

    # --- compose

    def _compose(self, proposal: Proposal, profile: WorkloadProfile) -> PolicyInfo:
        if not isinstance(proposal.spec, Mapping):
            raise SpecError("the proposal has no spec", "give one: name, goal, classes")
        spec = read_spec({**proposal.spec, "name": proposal.spec.get("name") or proposal.policy})
        _check_programs(spec, profile)
        _check_tunables(compose(spec).toml, spec.name, proposal)

        def draft(name: str) -> Draft:
            named = replace(spec, name=name)
            composed = compose(named)
            return Draft(composed.source, composed.toml, spec_table(named))

        return self._keep(Origin.COMPOSE, "", spec.name, draft)

    # --- patch

    def _patch(self, proposal: Proposal, profile: WorkloadProfile) -> PolicyInfo:
        parent = self._known(proposal, profile)
        if parent.is_object:
            raise PolicyError(f"policy {parent.name} is a compiled object, which cannot be patched", "patch a source")
        source = _text(apply_diff(read_source(parent.source).decode(), proposal.diff))
        about = replace(
            parent,
            description=sentence(proposal.description) or f"{parent.name}, changed.",
            limitations=f"Those of {parent.name}, from which it was patched: {parent.limitations}",
            declares=tuple(dict.fromkeys((*parent.declares, *policy_text.declares(source)))),
            reads=tuple(dict.fromkeys((*parent.reads, *policy_text.reads(source)))),
        )
        return self._write(Origin.PATCH, about, source, proposal, parent.name)

    # --- generate

    def _generate(self, proposal: Proposal, profile: WorkloadProfile) -> PolicyInfo:
        source = _text(proposal.source)
        about = PolicyInfo(
            name=proposal.policy,
            description=sentence(proposal.description) or "Written for one workload.",
            target_workloads=(profile.kind.value,),
            algorithm="Written freely; the comments of its source explain how it decides.",
            limitations="When it loses is not known.",
            tunables=(),
            inputs=(),
            source=Path(),
            declares=policy_text.declares(source),
            reads=policy_text.reads(source),
        )
        return self._write(Origin.GENERATE, about, source, proposal)

    def _write(
        self, origin: Origin, about: PolicyInfo, source: str, proposal: Proposal, parent: str = ""
    ) -> PolicyInfo:
        """Document a source by its own comments, and keep it.

        Args:
            about: what else is known: description, algorithm, tunables that were documented before ...
        """
        known = {tunable.name: tunable for tunable in about.tunables}
        inputs = policy_text.inputs(source)
        classes = (about.classes or KIND_NUMBERS) if "classes" in inputs else ()
        tunables = policy_text.tunables(source, known)
        info = replace(about, tunables=tunables, inputs=inputs, classes=classes)
        info.configured(proposal.tunables)  # before anything is kept

        def draft(name: str) -> Draft:
            return Draft(policy_text.with_name(source, name), write_manifest(replace(info, name=name)))

        return self._keep(origin, parent, about.name, draft)

    # --- keeping

    def _keep(self, origin: Origin, parent: str, name: str, draft: Callable[[str], Draft]) -> PolicyInfo:
        """Keep a policy under its name, or under the first with a number behind it that nothing else has."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        for possible in namesakes(name):
            texts = draft(possible)
            made = DerivedPolicy(possible, origin, parent, texts.source, texts.manifest, texts.spec, self._run_id, now)
            try:
                return self._shelf.keep(made)
            except NameTaken:
                continue
        raise PolicyError(f"{MOST_NAMESAKES} policies are called {name} already", "choose another name")


def short_name(name: str) -> str:
    """Return the name of a file as that of a policy: as long as the kernel shows, and in small letters."""
    name = name.lower()[:_NAME_BYTES]
    return name if NAME.fullmatch(name) else f"policy_{name.lstrip('_')}"[:_NAME_BYTES]


def namesakes(name: str) -> Iterator[str]:
    """Yield a name, then the same with a number: fair, fair_1, fair_2 ... A number that it has already is dropped."""
    yield name
    stem, _, number = name.rpartition("_")
    stem = stem if stem and number.isdecimal() else name
    for count in range(1, MOST_NAMESAKES + 1):
        numbered = f"{stem[: _NAME_BYTES - 1 - len(str(count))]}_{count}"
        if numbered != name:
            yield numbered


def sentence(text: str) -> str:
    """Return a model's words as one printable line of bounded length."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST_SENTENCE else f"{line[: LONGEST_SENTENCE - 3]}..."


def _text(source: str) -> str:
    """Return a source with one line break at its end; raise CompileError if it is no text."""
    ended = f"{source.rstrip()}\n"
    check_source_text(ended.encode(errors="surrogatepass"))
    return ended


def _check_tunables(manifest: str, name: str, proposal: Proposal) -> None:
    """Raise TunableError if the policy, which is not kept yet, does not take them."""
    read_manifest(manifest, name, Path()).configured(proposal.tunables)


def _check_programs(spec: PolicySpec, profile: WorkloadProfile) -> None:
    """Raise SpecError if a class is to take a program that the workload does not run."""
    labels = dict.fromkeys(row.label for row in (*profile.commands, *profile.histories))
    known = ", ".join([*list(labels)[:_SHOWN_PROGRAMS], *PROGRAM_KINDS])
    mistakes = [
        f"classes[{position}].match.programs[{place}] = {program!r}: the profile has no such label; there are {known}"
        for position, kind in enumerate(spec.classes)
        for place, program in enumerate(kind.match.programs)
        if program not in labels and program not in PROGRAM_KINDS
    ]
    if mistakes:
        raise spec_error(mistakes)
