"""python -m tests.mutation: make mutants, judge a sample of them, print what survived."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from kernel_bpf.build.target import KernelTarget, prepare_target
from kernel_bpf.policies.library import POLICIES, policy_from_file
from schedagent.core.policies.policy import PolicyInfo
from schedagent.core.settings import Settings, load_settings
from tests.mutation import result
from tests.mutation.judge import Judge, open_judge
from tests.mutation.mutants import Mutant, fair_order, mutants_of
from tests.mutation.objects import Birth, Nursery
from tests.mutation.operators import OPERATORS
from tests.mutation.program import Program, read_program
from tests.support.paths import FIXTURES
from verifier.microvm.kernels import default_kernel

CORPUS = FIXTURES / "policies" / "correct"


def read_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="judge N mutants; 0 judges all")
    parser.add_argument("--seed", type=int, default=1, help="which N")
    parser.add_argument("--static-only", action="store_true", help="leave out the gates that need a machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every verdict there")
    parser.add_argument("--policy", action="append", metavar="NAME", help="only this policy; may be repeated")
    parser.add_argument("--operator", action="append", choices=sorted(OPERATORS), help="only this one; may be repeated")
    return parser.parse_args(words)


def correct_policies(names: Iterable[str] | None = None) -> list[PolicyInfo]:
    """The bundled policies and the correct corpus, or those named."""
    sources = sorted(POLICIES.glob("*.bpf.c")) + sorted(CORPUS.glob("*.bpf.c"))
    policies = [policy_from_file(source) for source in sources]
    return [policy for policy in policies if not names or policy.name in set(names)]


def all_mutants(programs: Iterable[Program], operators: Iterable[str], seed: int) -> list[Mutant]:
    """Every mutant of these programs, in the order in which to judge them."""
    wanted = list(operators)
    return fair_order([mutant for program in programs for mutant in mutants_of(program, wanted)], seed)


def judge_some(nursery: Nursery, judge: Judge, mutants: Iterable[Mutant], number: int) -> list[result.Judged]:
    """Judge so many mutants one after the other and say how it goes; those that are no other program do not count."""
    judged: list[result.Judged] = []
    unborn = Counter[Birth]()
    for mutant in mutants:
        if len(judged) == number:
            break
        birth = nursery.birth(mutant)
        if birth is not Birth.ALIVE:
            unborn[birth] += 1
            continue
        verdict = judge(mutant)
        judged.append(result.Judged(mutant, verdict))
        fate = f"killed at {verdict.gate}" if verdict.killed else "SURVIVED"
        rules = f" (rule {', '.join(map(str, verdict.rules))})" if verdict.rules else ""
        say(f"[{len(judged)}] {mutant.policy} {mutant.operator} {mutant.place} {mutant.what}: {fate}{rules}")
    say(f"not judged: {', '.join(f'{count} {birth}' for birth, count in unborn.items()) or 'none'}")
    return judged


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(words: Sequence[str] | None = None) -> int:
    options = read_options(words)
    settings = load_settings()
    target = newest_target(settings)
    programs = [read_program(policy, target, settings.cache_dir) for policy in correct_policies(options.policy)]
    mutants = all_mutants(programs, options.operator or OPERATORS, options.seed)
    with tempfile.TemporaryDirectory(prefix="schedagent-mutants-") as name:
        folder = Path(name)
        judge = open_judge(settings, folder, static_only=options.static_only)
        judged = judge_some(Nursery(target, folder), judge, mutants, options.sample or len(mutants))
    if options.json:
        options.json.write_text(json.dumps(result.to_json(judged), indent=1))
    say(f"\n{result.survivors(judged)}\n\n{result.table(judged)}")
    return 0


def newest_target(settings: Settings) -> KernelTarget:
    """The kernel that the lab uses; raise SetupError if there is none."""
    kernel = default_kernel(settings)
    return prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)


if __name__ == "__main__":
    sys.exit(main())
