"""python -m tests.policy_fuzz: draw policies, take them through the gates, print what those got wrong.

With the same seed the same policies come in the same order; how many depends on the seconds. Exit status 1: an unsafe
fault passed, or a correct policy did not.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.settings import load_settings
from schedagent.run.opening import open_local_verifier
from tests.policy_fuzz import result
from tests.policy_fuzz.drawing import Drawn, drawn
from tests.policy_fuzz.result import Trial
from verifier.pipeline import Verifier

BATCH = 8
"""Policies whose static gates are passed side by side."""


def read_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.policy_fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=900, metavar="N", help="for how long (default 900)")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="no more than N policies; 0 for no limit")
    parser.add_argument("--seed", type=int, default=1, help="which policies (default 1)")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="begin behind the first N")
    parser.add_argument("--vm", action="store_true", help="the gates that need a machine, too: half a minute for each")
    parser.add_argument(
        "--survivors", type=Path, metavar="DIR", help="write the policies that the gates got wrong there"
    )
    return parser.parse_args(words)


def judged(policies: Iterator[Drawn], verifier: Verifier, folder: Path) -> Iterator[Trial]:
    """Take policies through the gates, a batch at a time."""
    while batch := list(itertools.islice(policies, BATCH)):
        infos = [each.write(folder) for each in batch]
        submissions = [(CandidatePolicy(info.name, info.configured({})), info) for info in infos]
        for each, verified in zip(batch, verifier.verify_all(submissions), strict=True):
            yield Trial(each, verified.report)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(words: Sequence[str] | None = None) -> int:
    options = read_options(words)
    until = time.monotonic() + options.seconds
    policies = itertools.islice(
        drawn(options.seed), options.skip, options.skip + options.count if options.count else None
    )
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="schedagent-fuzz-") as name:
        verifier = open_local_verifier(load_settings(), all_kernels=False, sign=False)
        verifier = dataclasses.replace(verifier, cache_dir=Path(name), static_only=not options.vm)
        for trial in judged(policies, verifier, Path(name)):
            trials.append(trial)
            if trial.is_wrong:
                say(str(trial))
                if options.survivors:
                    result.write_wrong(trial, options.survivors)
            if time.monotonic() > until:
                break
    say(result.table(trials))
    return int(result.failed(trials))


if __name__ == "__main__":
    sys.exit(main())
