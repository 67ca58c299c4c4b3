"""`schedagent observe` and `profile show`: one clear line for what cannot be watched, JSON that show draws."""

from __future__ import annotations

import json
import os

import pytest

from kernel_bpf.observe import sched_probe
from schedagent.core.host_profile import read_profile, to_json
from tests.support.command_line import refused
from tests.support.observed_host import largest_profile


@pytest.mark.parametrize(
    ("words", "why", "status"),
    [
        ((), "no scopes are named", 2),
        (("--system", "--pid", "1"), "2 scopes are named", 2),
        (("--pid", "4194304"), "there is no process 4194304", 2),
        (("--cgroup", "/no/such"), "there is no cgroup /no/such", 2),
        (("--cgroup", "../etc"), "no name of a cgroup", 2),
        (("--unit", "no-such-unit-here"), r"unit no-such-unit-here\.service has no cgroup", 2),
        (("--container", "no-such-container-here"), "container no-such-container-here has no cgroup", 2),
        (("--system", "--for", "0"), "no time to watch .* 0.5s to 1h", 2),
        (("--system", "--for", "2h"), "no time to watch", 2),
        (("--system", "--for", "soon"), "no time to watch", 2),
        (("--system", "--trace", "x.json"), "add: --tier 2", 2),
        (("--system", "--tier", "2", "--trace", "/"), "is a folder", 2),
        (("--system", "--tier", "2", "--socket", "/nowhere.sock"), "takes root, or the observer", 1),
    ],
)
def test_what_cannot_be_watched_is_refused(run, words, why, status):
    refused(run("observe", *words), why, status)


def test_a_kernel_without_btf_is_refused(run, monkeypatch, tmp_path):
    monkeypatch.setattr(sched_probe, "KERNEL_BTF", tmp_path / "none")
    monkeypatch.setattr(sched_probe, "may_trace", lambda: True)
    refused(run("observe", "--system", "--tier", "2", "--for", "1"), "this kernel has no BTF .* lower tier", 1)


def test_what_is_seen_is_drawn_from_its_json(run, tmp_path):
    done = run("observe", "--pid", os.getpid(), "--for", "0.6s", "--json")
    assert done.exit_code == 0, done.output
    assert read_profile(done.stdout).scope == f"process {os.getpid()} and its descendants"
    file = tmp_path / "profile.json"
    file.write_text(done.stdout)
    drawn = run("profile", "show", file)
    assert drawn.exit_code == 0
    assert "Tasks over time" in drawn.stdout


def test_the_summary_is_printed(run):
    done = run("observe", "--pid", os.getpid(), "--for", "0.6s", "--tier", "1")
    assert done.stdout.startswith(f"process {os.getpid()} and its descendants: ")
    assert "watching took" in done.stdout


def test_a_whole_profile_fits_80_columns_and_steers_no_terminal(run, tmp_path):
    profile = to_json(largest_profile())
    profile["commands"][0]["comm"] = "\x1b[2Jevil\nerror: all is lost"
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(profile))
    drawn = run("profile", "show", file)
    assert "\x1b" not in drawn.stdout
    assert not any(line.startswith("error:") for line in drawn.stdout.splitlines())
    assert max(map(len, drawn.stdout.splitlines())) <= 80 + len("\\x1b")


def test_what_is_no_profile_is_refused(run, tmp_path):
    file = tmp_path / "profile.json"
    file.write_text("{}")
    refused(run("profile", "show", file), "that is no profile: version")
    refused(run("profile", "show", "no-such-run"), "no-such-run", 2)
