"""`schedagent compare` and --scheduler on the command line, with a lab that follows a script."""

from __future__ import annotations

import json
import shutil

import pytest

from schedagent.cli import common
from tests.support.command_line import refused
from tests.support.paths import FIXTURES

RAW = FIXTURES / "policies" / "correct" / "raw_fifo.bpf.c"


@pytest.fixture
def scx_true(tmp_path, monkeypatch):
    """A program of PATH that looks like a scheduler."""
    (tmp_path / "bin").mkdir()
    shutil.copy("/bin/true", tmp_path / "bin" / "scx_true")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return "scx_true"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no scheduler is named hint: name one or more: --scheduler"),
        (["--scheduler", ""], "no scheduler is named"),
        (["--scheduler", "nothing-like-it"], "neither a policy of the library nor a program of PATH"),
        (["--scheduler", "plain", "--include", "/not/here"], "--include /not/here is not a directory"),
        (["--scheduler", "plain", "--iterations", "2"], "--iterations"),
    ],
    ids=str,
)
def test_bad_usage_of_compare(run, folders, script, words, message):
    refused(run("compare", "true", *words), message)
    assert not (folders / "state").exists(), "a refused command has left something behind"


@pytest.mark.usefixtures("script")
def test_a_comparison_has_one_table_one_answer_and_the_forms_of_every_run(run, scx_true, tmp_path):
    words = [word for name in (f"{scx_true} --fast", "longest_first", RAW) for word in ("--scheduler", name)]
    compared = run("compare", "true", *words, "--quiet")
    assert compared.exit_code == 0, "longest_first is better by the script"
    assert compared.stdout.count("Candidates against the default scheduler") == 1
    assert compared.stdout.count("Verdict:") == 1
    assert "1 scx_true --fast" in compared.stdout
    [listed] = json.loads(run("runs", "list", "--json").stdout)
    shown = json.loads(run("runs", "show", listed["run"], "--json").stdout)
    assert [each["policy"] for each in shown["iterations"][0]["candidates"]] == [scx_true, "longest_first", "raw_fifo"]
    assert shown["best"]["policy"] == "longest_first"
    page = tmp_path / "run.html"
    run("runs", "report", listed["run"], "--html", page)
    assert "scx_true --fast" in page.read_text()
    assert "schedagent compare --dir" in page.read_text()


@pytest.mark.usefixtures("script")
def test_nothing_better_is_the_answer_three(run, scx_true):
    assert run("compare", "true", "--scheduler", scx_true, "--json").exit_code == common.EXIT_NO


def test_a_preview_names_the_schedulers_and_starts_nothing(run, script, scx_true, folders):
    text = run("compare", "true", "--scheduler", f"{scx_true} -a", "--scheduler", "plain", "--dry-run").stdout
    assert text.startswith("This would compare schedulers on 'true' in ")
    assert "tried:     scx_true -a, plain; nothing is planned" in text
    assert script.log == []
    assert not (folders / "state").exists()


def test_optimize_tries_what_is_named_first(run, script, scx_true):
    report = json.loads(run("optimize", "true", "--scheduler", scx_true, "--iterations", "1", "--json").stdout)
    assert report["iterations"][0]["candidates"][0]["policy"] == scx_true
    assert len(report["iterations"][0]["candidates"]) > 1
    assert f"{scx_true} as named" in report["iterations"][0]["reason"]
