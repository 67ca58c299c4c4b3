"""The bench of composing: whatever a spec says compiles, and a sample of it passes every gate of the verifier.

Run by hand: pytest -m bench tests/bench/test_compose.py. A compilation takes about a second, all gates of a policy up
to 20 (tests/bench/test_verifier.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.policies.compose import compose
from kernel_bpf.policies.library import policy_from_file
from schedagent.core.errors import CompileError
from schedagent.core.policies.spec import PolicySpec
from schedagent.core.settings import load_settings
from schedagent.run.opening import open_local_verifier
from tests.corpus import Entry, complaint, judge
from tests.mutation.__main__ import newest_target
from tests.support.random_specs import drawn

pytestmark = pytest.mark.bench

COMPILED = 500
PROVED = 40
Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Print a line past pytest's capture."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(text, flush=True)

    return line


def written(spec: PolicySpec, folder: Path) -> Path:
    """Write both files of a composed policy; return its source."""
    composed = compose(spec)
    (folder / f"{spec.name}.toml").write_text(composed.toml)
    source = folder / f"{spec.name}.bpf.c"
    source.write_text(composed.source)
    return source


def test_every_drawn_spec_compiles(tmp_path: Path, say: Say) -> None:
    target, failed = newest_target(load_settings()), []
    sample = drawn(COMPILED)
    for spec in sample:
        try:
            said = compile_policy(written(spec, tmp_path), spec.name, target).log
        except CompileError as error:
            said = error.message
        if said:
            failed.append(spec.name)
            say(f"{spec.name}: {said}\n{spec}")
    say(f"{len(sample) - len(failed)} of {len(sample)} drawn specs compile without a warning")
    assert len(sample) == COMPILED
    assert not failed


def test_a_sample_passes_every_gate(tmp_path: Path, say: Say) -> None:
    verifier, failed = open_local_verifier(load_settings(), sign=False), []
    sample = drawn(COMPILED)[:: COMPILED // PROVED][:PROVED]
    for spec in sample:
        entry = Entry("correct", policy_from_file(written(spec, tmp_path)))
        report = judge(entry, verifier)
        said = complaint(entry, report)
        seconds = sum(gate.seconds for gate in report.gates)
        say(f"{spec.name:15} {len(spec.classes)} classes, {spec.dispatch:11} {seconds:5.1f} s  {said or 'passed'}")
        if said:
            failed.append(spec.name)
            say(str(spec))
    say(f"{len(sample) - len(failed)} of {len(sample)} composed policies pass every gate")
    assert len(sample) == PROVED
    assert not failed
