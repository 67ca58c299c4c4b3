"""What --scheduler names: policies of the library, sources, and programs that load their policies themselves."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kernel_bpf.policies.library import load_library, read_manifest
from kernel_bpf.policies.programs import InstalledPrograms
from schedagent.core.errors import UsageError
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.policies.program import digest_of
from schedagent.core.policies.proposal import Origin
from schedagent.core.policies.rodata import load_rodata
from schedagent.run.options import RunOptions
from schedagent.run.schedulers import MOST_SCHEDULERS, SourceVerifier, read_include, read_schedulers
from tests.support.paths import FIXTURES

LIBRARY = load_library()
RAW = FIXTURES / "policies" / "correct" / "raw_fifo.bpf.c"


@pytest.fixture
def installed(tmp_path):
    """A PATH of one folder, with one scheduler in it."""
    (tmp_path / "bin").mkdir()
    shutil.copy("/bin/true", tmp_path / "bin" / "scx_true")
    return InstalledPrograms((tmp_path / "bin",))


@pytest.fixture
def read(installed):
    return lambda *words: read_schedulers(words, LIBRARY, installed)


def refusal(read, *words: str) -> str:
    with pytest.raises(UsageError) as refused:
        read(*words)
    return str(refused.value).replace("\n  hint:", " hint:")


def test_a_name_of_the_library_is_that_policy_as_it_is(read):
    (named,) = read("longest_first")
    assert (named.origin, named.policy, named.tunables) == (Origin.CONFIGURE, "longest_first", {})


def test_a_program_of_path_comes_with_its_arguments_and_what_it_is_by_content(read, tmp_path):
    (named,) = read("scx_true --performance 'a b'")
    program = named.program
    assert (named.origin, named.policy) == (Origin.PROGRAM, "scx_true")
    assert program.path == str(tmp_path / "bin" / "scx_true")
    assert program.arguments == ("--performance", "a b")
    assert program.digest == digest_of(Path("/bin/true"))
    assert program.command == "scx_true --performance 'a b'"


def test_nothing_of_a_program_is_shell_text(read):
    (named,) = read("scx_true '$(touch here)' ; rm -rf x")
    assert named.program.arguments == ("$(touch here)", ";", "rm", "-rf", "x")


def test_a_path_is_a_program_wherever_it_is(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (named,) = read("./bin/scx_true")
    assert named.program.path == str(tmp_path / "bin" / "scx_true")


def test_a_source_is_kept_by_its_text_and_its_documentation(read):
    (named,) = read(str(RAW))
    assert (named.origin, named.policy, named.source) == (Origin.BROUGHT, "raw_fifo", RAW.read_text())
    assert 'name = "raw_fifo"' in named.manifest
    assert named.path == str(RAW)


def test_what_a_sources_own_loader_sets_comes_with_its_documentation(read, tmp_path):
    values = tmp_path / "its values.toml"
    values.write_text('[rodata]\nslice_ns = 5000000\nname = "x"\ncpus = [1, -2]\n[ops]\nflags = ["SCX_OPS_ENQ_LAST"]\n')
    (named,) = read(f"{RAW} --rodata '{values}'")
    assert read_manifest(named.manifest, "it", RAW).rodata == load_rodata(values)


def test_a_source_that_nobody_documented_is_read_as_well(read, tmp_path):
    bare = tmp_path / "My_Own.bpf.c"
    bare.write_text(RAW.read_text())
    (named,) = read(str(bare))
    assert (named.policy, named.source) == ("My_Own", RAW.read_text())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", "names nothing"),
        ("'", "names nothing"),
        ("scx_lavd", "scx_lavd is not installed hint: install it, or give the path of its program"),
        ("longest_frist", "neither a policy of the library nor a program of PATH hint: did you mean longest_first?"),
        ("longest_first --fast", "longest_first is a policy of the library, which takes no arguments"),
        ("./nowhere/scx_x", "the scheduler nowhere/scx_x is not there"),
        ("default", "the default scheduler is always among them hint: leave it out"),
        ("/", "is no regular file"),
        ("~nobody-here/scx_x", "the scheduler ~nobody-here/scx_x is not there"),
        (f"{'x' * 300}.bpf.c", "cannot be read: File name too long"),
        ("/etc/passwd", "is not executable hint: chmod +x /etc/passwd"),
        ("./nowhere.bpf.c", "is not there, or no regular file"),
        (f"{RAW} --fast", "a source takes no arguments but --rodata FILE.toml"),
        (f"{RAW} --rodata /nowhere.toml", "--rodata /nowhere.toml cannot be read: No such file or directory"),
        ("./mine.bpf.o", "is a compiled object hint: give its source"),
        ("scx_true \x1b[31m", "holds what cannot be printed"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_starts(read, word, message):
    assert message in refusal(read, word)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("#!/bin/sh\nexec scx_true\n", "is a script hint: give the program that it starts"),
        ("just text\n", "is no program hint: give an executable, or a source NAME.bpf.c"),
        ("", "is no program"),
    ],
)
def test_what_is_executable_but_no_program_is_refused(read, tmp_path, content, message):
    file = tmp_path / "scx_file"
    file.write_text(content)
    file.chmod(0o755)
    assert message in refusal(read, str(file))


def test_one_arm_is_named_once_and_there_are_not_too_many(read):
    assert "given twice" in refusal(read, "longest_first", "longest_first")
    assert len(read("scx_true -a", "scx_true -b")) == 2
    assert f"at most {MOST_SCHEDULERS}" in refusal(read, *(f"scx_true -{number}" for number in range(17)))


def test_folders_of_headers_must_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "headers").mkdir()
    assert read_include([Path("headers")]) == (str(tmp_path / "headers"),)
    with pytest.raises(UsageError, match="--include nowhere is not a directory"):
        read_include([Path("nowhere")])


def test_options_come_back_as_they_were_stored(read):
    options = RunOptions(schedulers=read("longest_first", "scx_true -s 1", str(RAW)), include=("/x",), compare=True)
    assert RunOptions.from_json(json.loads(json.dumps(asdict(options)))) == options
    assert options.wanted_policies == ("longest_first",)
    assert not options.planned_by_models


# --- a program as a candidate ----------------------------------------------------------------------------------------


def test_results_of_a_program_are_kept_by_its_content_and_arguments(read):
    (plain,), (fast,) = read("scx_true"), read("scx_true --fast")
    first, second = CandidatePolicy.of_program(plain.program), CandidatePolicy.of_program(fast.program)
    rebuilt = CandidatePolicy.of_program(replace(plain.program, digest="0" * 64))
    moved = CandidatePolicy.of_program(replace(plain.program, path="/elsewhere/scx_true"))
    assert len({first.key, second.key, rebuilt.key}) == 3
    assert moved.key == first.key
    assert (second.label, second.policy, second.loads_itself) == ("scx_true --fast", "scx_true", True)


def test_a_program_that_changed_or_is_gone_is_not_measured_as_the_one_that_was(read, tmp_path):
    (named,) = read("scx_true")
    named.program.require_unchanged()
    file = tmp_path / "bin" / "scx_true"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(UsageError, match="has changed since this run began"):
        named.program.require_unchanged()
    file.unlink()
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        named.program.require_unchanged()


def test_only_what_was_brought_sees_the_users_folders_of_headers():
    class Named:
        def __init__(self, name):
            self.name = name

        def verify_all(self, submissions):
            return iter([f"{self.name} {info.name}" for _candidate, info in submissions])

        def compile(self, info):
            return f"{self.name} {info.name}"

    ours = LIBRARY["fifo"]
    brought = replace(ours, name="mine", origin=Origin.BROUGHT)
    verifier = SourceVerifier(Named("plain"), Named("with headers"))
    submissions = [(None, brought), (None, ours), (None, brought)]
    assert list(verifier.verify_all(submissions)) == ["with headers mine", "plain fifo", "with headers mine"]
    assert verifier.compile(brought) == "with headers mine"
    assert verifier.compile(ours) == "plain fifo"
