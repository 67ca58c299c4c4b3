"""The command line: what it imports, what it accepts, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from kernel_bpf.policies.library import POLICIES, load_library, policy_from_file
from repo_store.records import RunStatus
from schedagent.cli import app as cli
from schedagent.cli import common
from schedagent.cli.grouped import LONGEST_HELP
from schedagent.core.errors import VmLost, WorkloadFailed
from schedagent.core.verification import GateResult, GateStatus
from schedagent.run import opening
from schedagent.run.intake import Description, read_workload
from schedagent.verification.text import GatePrinter
from tests.support import scripted_lab as scripted
from tests.support.command_line import refused
from tests.support.paths import ROOT

PROGRAM = [sys.executable, "-c", "from schedagent.cli.app import main; main()"]
COMMANDS = typer.main.get_command(cli.app).commands
VERBS = [
    [name, *below]
    for name, command in COMMANDS.items()
    for below in ([], *([verb] for verb in vars(command).get("commands", ())))
]
IMPERATIVE = re.compile(
    "(Accept|Answer|Apply|Approve|Check|Compare|Continue|Create|Delete|Download|End|Explain|Find|Get|Give|List|Manage|"
    "Offer|Print|Prolong|Reject|Remove|Replace|Replay|Run|Search|Serve|Show|Take|Turn|Verify|Watch)\\b"
)
FIFO = POLICIES / "fifo.bpf.c"
HEAVY = ("langgraph", "langchain", "langchain_core", "langsmith", "sqlalchemy", "alembic", "scipy", "numpy", "pydantic")


def program(*words, **options):
    return subprocess.run(
        [*PROGRAM, *words], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False, **options
    )


# --- what it imports -------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from schedagent.cli.app import main; sys.argv[1:] = ['--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "optimize" in done.stdout
    imported = set(done.stderr.split())
    assert "typer" in imported
    assert not imported & set(HEAVY)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_that_fits_eighty_columns(run, verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = run(*verb, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    _usage, _, text = result.stdout.partition("\n\n")
    assert not re.search(r"\.\.\.$", text, re.MULTILINE), "it was cut"


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_the_first_help_line_of_every_verb_is_a_short_imperative_and_listed_whole(run, verb):
    command = COMMANDS[verb[0]]
    for name in verb[1:]:
        command = command.commands[name]
    first = command.help.partition("\n\n")[0]
    assert len(first) <= LONGEST_HELP
    assert IMPERATIVE.match(first)
    assert re.search(rf"\b{verb[-1]} +{re.escape(first)}$", run(*verb[:-1], "--help").stdout, re.MULTILINE)


def test_commands_are_listed_under_headings(run):
    headings = re.findall(r"^(\w[\w ]*):$", run("--help").stdout, re.MULTILINE)
    assert headings == ["Options", "Optimise", "Policies", "This machine", "Service"]


def test_version_and_exit_statuses(run):
    assert re.fullmatch(r"schedagent \d+\.\d+.*\n", run("--version").stdout)
    told = run("--help").stdout
    for status in (common.EXIT_FAILED, common.EXIT_USAGE, common.EXIT_NO, common.EXIT_WAITING, common.EXIT_INTERRUPTED):
        assert re.search(rf"\b{status}\b", told), f"--help does not document exit status {status}"


# --- bad usage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workload", ""], "--workload is empty"),
        (["--workload", "  \n"], "--workload is empty"),
        (["--workload", "mkae -j"], "there is no program 'mkae'"),
        (["--workload", "./not-here.sh"], "there is no program './not-here.sh'"),
        (["--workload", "make 'x"], r"not a shell command: .*[Uu]nterminated"),
        (["--workload", "true \udcff"], "not UTF-8"),
        (["--workload", "true", "--prepare", "mkae clean"], "--prepare: there is no program 'mkae'"),
        (["--workload", "true", "--dir", "/not/here"], "directory /not/here does not exist"),
        (["--workload", "true", "--dir", "/etc/passwd"], "/etc/passwd is not a directory"),
        (["--workload", "true", "--dir", "~nobody-here/x"], "directory ~nobody-here/x does not exist"),
        (["--workload", "true", "--dir", "a" * 300], "cannot be used: File name too long"),
        (["--workload", "true", "--goal", "latncy"], "'latncy' is not known hint: did you mean latency"),
        (["--workload", "true", "--goal", "latency"], "--goal latency needs --metric"),
        (["--workload", "true", "--metric", "p99: ("], "is not a regular expression"),
        (["--workload", "true", "--metric", "(p99|p50): (.*)"], "has 2 groups"),
        (["--workload", "true", "--iterations", "0"], "--iterations"),
        (["--workload", "true", "--candidates", "9"], "--candidates"),
        (["--workload", "true", "--timeout", "0"], "--timeout"),
        (["--workload", "true", "--timeout", "nan"], "--timeout"),
        (["--workload", "true", "--timeout", "inf"], "--timeout"),
        (["--workload", "true", "--budget-minutes", "inf"], "--budget-minutes"),
        (["--workload", "true", "--budget-minutes", "nan"], "--budget-minutes"),
        ([], "--workload"),
        (["--wrokload", "true"], "--wrokload"),
    ],
    ids=str,
)
def test_bad_usage_of_optimize(run, folders, words, message):
    refused(run("optimize", *words), message)
    assert not (folders / "state").exists(), "a refused command has left something behind"


@pytest.mark.parametrize(
    "command",
    ["ulimit -n 100; true", "make -j # it's fine", "A=1 true", "if true; then true; fi", "(cd /tmp && ls)", '"true" x'],
)
def test_what_a_shell_takes_is_not_refused(folders, command):
    assert read_workload(Description(command, folders)).command == command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume", "nothing"], "there is no run 'nothing' hint: .*schedagent runs list"),
        (["runs", "show", "nothing"], "there is no run 'nothing'"),
        (["policies", "show", "longst_first"], "no policy 'longst_first' .*did you mean longest_first"),
        (["policies", "show", "zzz"], "no policy 'zzz' .*there are: .*fifo"),
        (["verify", "/not/here.bpf.c"], "/not/here.bpf.c is not there"),
        (["verify", POLICIES / "fifo.toml"], "does not name a policy"),
        (["verify", POLICIES / "fifo.bpf.c", "--set", "nothing=1"], "has no tunable 'nothing' hint: it has: slice_us"),
        (["verify", POLICIES / "fifo.bpf.c", "--set", "slice_us"], "'slice_us' is not tunable=number"),
        (["verify", POLICIES / "fifo.bpf.c", "--set", "slice_us=abc"], "'slice_us=abc' is not tunable=number"),
        (["verify", POLICIES / "fifo.bpf.c", "--include", "/not/here"], "--include /not/here is not a directory"),
        (["verify", FIFO, "--with", "/not/here.bpf.c"], "--with /not/here.bpf.c is no C source that is there"),
        (["verify", FIFO, "--rodata", "/not/here.toml"], "--rodata /not/here.toml cannot be read: No such file"),
        (["verify", FIFO, "--static", "--object", "x.o"], "--object is written only after all gates hint: leave out"),
        (["verify", FIFO, "--static", "--scope", "partial"], "--scope is of the token, which is issued only after all"),
        (["verify", FIFO, "--static", "--depth", "quick"], "--depth is of the proving ground, which does not run"),
        (["verify", FIFO, "--static", "--topology", "flat"], "--topology is of the proving ground, which does not run"),
        (["verify", FIFO, "--topology", "2x2"], "'2x2' is no topology: .*, for example 2x2x1x2 hint: or flat"),
        (["verify", FIFO, "--topology", "4x4x4x4"], "4x4x4x4 is no topology: 2 to 32 CPUs"),
        (["verify", FIFO, "--topology", "flat", "--topology", "2x2x1x2"], "--topology flat means no other guest"),
        (["verify", FIFO, "--set", "slice_us=5", "--set", "slice_us=6"], "--set slice_us is given twice"),
        (["verify", FIFO, "--accept", "starvation"], "--accept 'starvation' is nothing that can be .* weights, "),
        (["verify", FIFO, "--accept", "reads:secrets"], "'reads:secrets' is nothing .*reads:comm"),
        (["verify", "OBJECT", "--include", "."], "--include is for a source, and .* is compiled already"),
        (["verify", FIFO, "--static", "--kernel", "NOSUCH"], "kernel NOSUCH is not in .* hint: "),
        (["verify", "-"], "verified from a file, whose name it has, not from stdin"),
        (["keys", "export", "--output", "/not/here/key.pem"], "--output /not/here/key.pem: there is no such folder"),
        (["verifier", "serve", "--allow-user", "no such"], "--allow-user: there is no user 'no such'"),
        (["mcp", "--port", "8421"], "--port is for --http hint: add --http"),
        (["deploy", "r", "--metric-every", "9"], "--metric-every is for a metric hint: add --metric-command"),
    ],
    ids=str,
)
def test_bad_usage_of_the_rest(run, folders, words, message):
    (folders / "a.bpf.o").write_bytes(b"an object")
    refused(run(*(folders / "a.bpf.o" if word == "OBJECT" else word for word in words)), message)


def test_a_tunable_out_of_range(run):
    slice_us = load_library()["fifo"].tunable("slice_us")
    result = run("verify", POLICIES / "fifo.bpf.c", "--set", f"slice_us={slice_us.maximum + 1}")
    refused(result, f"out of range hint: accepted: {slice_us.minimum} to {slice_us.maximum} us")


def test_a_setting_that_is_not_accepted(run, monkeypatch):
    monkeypatch.setenv("SCHEDAGENT_VM_CPUS", "many")
    refused(run("runs", "list"), "SCHEDAGENT_VM_CPUS='many' is not accepted")


# --- folders and files that cannot be used ----------------------------------------------------------------------------


def test_a_state_folder_that_cannot_be(run, folders, monkeypatch):
    (folders / "file").write_text("not a folder")
    monkeypatch.setenv("SCHEDAGENT_STATE", str(folders / "file" / "state"))
    for words in (["runs", "list"], ["optimize", "--workload", "true"], ["resume", "x"], ["policies", "search", "x"]):
        refused(run(*words), r"file/state cannot be used: .* hint: set SCHEDAGENT_STATE", common.EXIT_FAILED)


def test_a_cache_folder_that_cannot_be(run, folders, monkeypatch):
    (folders / "file").write_text("not a folder")
    monkeypatch.setenv("SCHEDAGENT_CACHE", str(folders / "file"))
    for words in (["optimize", "--workload", "true"], ["verify", POLICIES / "fifo.bpf.c"]):
        refused(run(*words), r"/file cannot be used: .* hint: set SCHEDAGENT_CACHE", common.EXIT_FAILED)


def test_no_kernel_in_the_cache(run, folders):
    said = refused(run("optimize", "--workload", "true"), "kernel", common.EXIT_FAILED)
    assert "make" in said
    assert json.loads(run("runs", "list", "--json").stdout) == [], "a run was created that could never start"


@pytest.fixture
def small_disk(folders):
    """A file system of 128 KiB; needs the right to mount."""
    place = folders / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk(run, small_disk, monkeypatch):
    monkeypatch.setenv("SCHEDAGENT_STATE", str(small_disk / "state"))
    refused(run("runs", "list"), "the disk with the repository .* is full", common.EXIT_FAILED)
    with (small_disk / "rest").open("wb") as file:
        while os.write(file.fileno(), b"\0" * 4096) == 4096 and os.statvfs(small_disk).f_bavail:
            pass
    refused(run("runs", "list"), "no space is left in folder", common.EXIT_FAILED)


def test_a_read_only_disk(run, small_disk, monkeypatch):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    monkeypatch.setenv("SCHEDAGENT_STATE", str(small_disk / "state"))
    refused(run("runs", "list"), "small/state is read-only hint: set SCHEDAGENT_STATE", common.EXIT_FAILED)
    monkeypatch.setenv("SCHEDAGENT_STATE", str(small_disk.parent / "state"))
    monkeypatch.setenv("SCHEDAGENT_CACHE", str(small_disk / "cache"))
    refused(run("optimize", "--workload", "true"), "small/cache is read-only", common.EXIT_FAILED)


def test_a_disk_that_fills_up_in_a_run(run, script, small_disk, monkeypatch):
    """Everything stored before stays, and the run continues once there is room."""
    big = subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=False)
    assert big.returncode == 0
    monkeypatch.setenv("SCHEDAGENT_STATE", str(small_disk / "state"))

    def fill(save):
        def filling(repository, *arguments, **options):
            save(repository, *arguments, **options)
            with (small_disk / "rest").open("ab", buffering=0) as file:
                while os.statvfs(small_disk).f_bavail:
                    file.write(b"\0" * 4096)

        return filling

    with monkeypatch.context() as patched:
        patched.setattr(opening.PolicyRepository, "save_plan", fill(opening.PolicyRepository.save_plan))
        result = run("optimize", "--workload", "true")
    said = refused_after_progress(result, "full", common.EXIT_FAILED)
    run_id = re.search(r"schedagent resume (\S+)", said)
    assert run_id, said
    (small_disk / "rest").unlink()
    observed = script.log.count("observe")
    assert run("resume", run_id.group(1)).exit_code == 0
    assert script.log.count("observe") == observed == 1


def refused_after_progress(result, message, status):
    said = " ".join(result.stderr.split())
    assert result.exit_code == status, result.output
    assert re.search(message, said), said
    return said


def test_a_corrupted_repository(run, folders):
    place = folders / "state" / "repository.sqlite"
    place.parent.mkdir()
    for damage in (b"this is no database at all " * 400, b"SQLite format 3\0" + b"\xff" * 8000):
        place.write_bytes(damage)
        for words in (["runs", "list"], ["optimize", "--workload", "true"], ["resume", "x"]):
            refused(run(*words), "the repository .* (is damaged|cannot be used)", common.EXIT_FAILED)
        assert place.read_bytes() == damage, "what is damaged is not touched"


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_something_better(run, script):
    result = run("optimize", "--workload", "true")
    assert result.exit_code == 0, result.output
    assert re.search(
        r"Verdict: longest_first is better: at least 1\d\.\d% less time, probably (19|20|21)\.\d%", result.stdout
    )
    assert "observation:" in result.stderr
    assert "observation:" not in result.stdout
    assert "The same command again starts from this result" in result.stdout


def test_nothing_better(run, script, monkeypatch):
    monkeypatch.setattr(opening, "open_lab", lambda _settings: scripted.Lab(replace(script, ratios={})))
    result = run("optimize", "--workload", "true", "--iterations", "1")
    assert result.exit_code == common.EXIT_NO
    assert "Keep the default scheduler" in result.stdout


def test_json_is_all_there_is_on_stdout(run, script):
    done = run("optimize", "--workload", "echo :100: [/bold]", "--iterations", "1", "--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert report["best"]["policy"] == "longest_first"
    [listed] = json.loads(run("runs", "list", "--json").stdout)
    assert (listed["run"], listed["command"]) == (report["run"], "echo :100: [/bold]")
    assert json.loads(run("runs", "show", report["run"], "--json").stdout) == report
    assert "echo :100:" in run("runs", "show", report["run"]).stdout
    assert run("runs", "list").exit_code == 0
    for words in (["policies", "list"], ["policies", "show", "plain"], ["policies", "search", "slice"]):
        json.loads(run(*words, "--json").stdout)


def test_a_workload_that_fails(run, script, monkeypatch):
    monkeypatch.setattr(opening, "open_lab", lambda _settings: scripted.Lab(replace(script, default_fails_at=1)))
    result = run("optimize", "--workload", "true")
    said = refused_after_progress(result, "failed under the default scheduler.* its output", common.EXIT_FAILED)
    assert said.endswith("hint: fix the command until it works; nothing was changed on this machine"), "one hint"
    [listed] = json.loads(run("runs", "list", "--json").stdout)
    assert listed["status"] == "failed"
    shown = run("runs", "show", listed["run"])
    assert shown.exit_code == 0
    assert "No verdict: the run failed: the workload failed under the default scheduler: exit status 2" in shown.stdout
    assert "its output" in shown.stdout
    assert "Next: fix the command until it works; nothing was changed on this machine." in shown.stdout
    assert "resume" not in result.stderr + shown.stdout, "to resume it would fail in the same way again"


def test_output_of_a_failing_workload_does_not_steer_the_terminal(run, script, monkeypatch):
    def failed(_lab, _workload):
        raise WorkloadFailed("it failed\n    \x1b]52;c;cm0gLXJm\x07\x9b31m\u202e\x00")

    monkeypatch.setattr(scripted.Lab, "observe", failed)
    result = run("optimize", "--workload", "true")
    [listed] = json.loads(run("runs", "list", "--json").stdout)
    for text in (result.stderr, run("runs", "show", listed["run"]).stdout):
        assert r"\x1b]52;c;cm0gLXJm\x07\x9b31m\u202e\x00" in text
        assert not set(text) & set("\x1b\x07\x9b\u202e\x00")


def test_the_schema_of_runs_show_and_optimize_is_printed(run):
    schema = json.loads(run("runs", "show", "--json-schema").stdout)
    assert schema["title"] == "ReportForm"
    assert "pairs" in schema["$defs"]["CandidateForm"]["properties"]


def test_a_finished_run_is_not_resumed(run, script):
    run("optimize", "--workload", "true", "--iterations", "1")
    [listed] = json.loads(run("runs", "list", "--json").stdout)
    refused(run("resume", listed["run"]), "is finished hint: see its report: schedagent runs show")


def test_a_run_of_other_hardware_is_not_resumed(run, script, monkeypatch):
    script.settings.state_dir.mkdir()
    run_id = script.create()
    with script.repository() as repository:
        repository.finish_run(run_id, RunStatus.INTERRUPTED)
    other = replace(scripted.HARDWARE, cpus=64)
    monkeypatch.setattr(scripted.Lab, "hardware", other)
    refused(run("resume", run_id), "was measured on other hardware")
    [listed] = json.loads(run("runs", "list", "--json").stdout)
    assert listed["status"] == "interrupted"


def test_errors_of_the_system_are_no_tracebacks(run, script, monkeypatch):
    def out_of_files(_lab, _workload):
        raise OSError(24, "Too many open files", "/somewhere")

    monkeypatch.setattr(scripted.Lab, "observe", out_of_files)
    result = run("optimize", "--workload", "true")
    refused_after_progress(result, "Too many open files.*/somewhere", common.EXIT_FAILED)


def test_a_reader_that_goes_away(folders):
    done = subprocess.run(
        f"{sys.executable} -c 'from schedagent.cli.app import main; main()' policies list --json | head -c 10",
        shell=True, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


# --- verify ----------------------------------------------------------------------------------------------------------


def test_clang_line_numbers_are_no_emoji(capsys):
    """To rich, the :100: of "file.c:100:5" is one."""
    printer = GatePrinter(quiet=False)
    printer(GateResult("compile", GateStatus.FAILED, "bad.bpf.c:100:5: error: [/] expected ';'"))
    assert "bad.bpf.c:100:5: error: [/] expected ';'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("", 0),
        ("compile", common.EXIT_NO),
        ("proving ground", common.EXIT_NO),
        ("lost while verified", common.EXIT_FAILED),
    ],
)
def test_the_status_of_verify_says_yes_no_or_unknown(run, script, monkeypatch, fault, status):
    from schedagent.verification import files as verification

    verifier = scripted.Verifier(replace(script, faults={"fifo": fault}))
    monkeypatch.setattr(verification, "open_local_verifier", lambda *_arguments, **_options: verifier)
    result = run("verify", POLICIES / "fifo.bpf.c")
    assert result.exit_code == status
    assert ("No token was issued" in result.stdout) == bool(status)
    assert "passed  source" in result.stdout
    answer = run("verify", POLICIES / "fifo.bpf.c", "--json")
    assert answer.exit_code == status
    assert json.loads(answer.stdout)["passed"] == {0: True, common.EXIT_NO: False, common.EXIT_FAILED: None}[status]


@pytest.mark.vm
def test_a_source_that_does_not_compile(tmp_path, monkeypatch):
    """Needs the kernel of the cache for its types, but no VM: the gate before fails."""
    monkeypatch.setenv("SCHEDAGENT_STATE", str(tmp_path / "state"))
    source = tmp_path / "broken.bpf.c"
    source.write_text('#include "common.bpf.h"\n\nint broken(void)\n{\n\treturn nothing;\n}\n')
    done = program("verify", str(source))
    assert done.returncode == common.EXIT_NO
    assert re.search(r"broken\.bpf\.c:5:9: error: .*nothing", done.stdout)
    assert "broken: failed: gate 'source' did not let it through" in done.stdout
    assert done.stdout.count("undeclared identifier") == 1
    assert "for the same reason" in done.stdout
    assert done.stdout.count("skipped  ") == 5


@pytest.mark.parametrize("words", [["runs", "list"], ["verify", str(POLICIES / "fifo.bpf.c"), "--set", "x"]])
def test_the_program_itself(folders, words):
    """The same through a real process: statuses and streams as a shell sees them."""
    done = program(*words, env=dict(os.environ))
    assert done.returncode == (0 if words[0] == "runs" else common.EXIT_USAGE)
    assert bool(done.stderr) == bool(done.returncode)
    assert not (done.stdout and done.stderr)


def test_a_lost_machine_ends_with_a_hint(run, script, monkeypatch):
    def lost(_lab, _workload):
        raise VmLost("the guest said nothing for 30 s", "look at the console's end")

    monkeypatch.setattr(scripted.Lab, "observe", lost)
    said = refused_after_progress(run("optimize", "--workload", "true"), "the guest said nothing", common.EXIT_FAILED)
    assert "look at the console's end; then continue, nothing that was measured is lost: schedagent resume" in said


# --- compose ---------------------------------------------------------------------------------------------------------

SPEC = 'name = "said"\ngoal = "In turn."\n\n[[classes]]\nname = "everyone"\norder = "fifo"\n'


def test_compose_prints_the_source_or_writes_both_files(run, tmp_path):
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC)
    printed = run("compose", spec)
    assert printed.exit_code == 0
    assert printed.stdout.startswith("/* SPDX-License-Identifier: GPL-2.0-only */\n")
    files = [str(tmp_path / "out" / name) for name in ("said.bpf.c", "said.toml")]
    assert run("compose", spec, "--output", tmp_path / "out").stdout.splitlines() == files
    assert Path(files[0]).read_text() == printed.stdout
    told = json.loads(run("compose", spec, "--output", tmp_path / "out", "--json").stdout)
    assert told == {"name": "said", "source": printed.stdout, "toml": Path(files[1]).read_text(), "files": files}


def test_compose_reads_json_and_prints_the_schema(run, tmp_path):
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"name": "said", "goal": "In turn.", "classes": [{"name": "everyone"}]}))
    assert run("compose", spec).exit_code == 0
    schema = json.loads(run("compose", "--schema").stdout)
    assert schema["required"] == ["name", "goal", "classes"]


def test_compose_says_what_is_wrong(run, tmp_path):
    spec = tmp_path / "spec.toml"
    refused(run("compose", spec), "cannot be read: No such file")
    spec.write_text("name = ")
    refused(run("compose", spec), "is not valid TOML")
    spec.write_bytes(b"\xff")
    refused(run("compose", spec), "is not valid TOML")
    spec.write_text("#" * 70_000)
    refused(run("compose", spec), "too long: at most 65536 bytes")
    spec.write_text(SPEC + "slice_us = 5\n")
    said = refused(run("compose", spec), re.escape("classes[0].slice_us = 5: below 100"))
    assert "schedagent compose --schema" in said
    (tmp_path / "broken.json").write_text("[" * 60_000)
    refused(run("compose", tmp_path / "broken.json"), "is not valid JSON")


def test_compose_reads_stdin(run, tmp_path):
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC)
    as_json = json.dumps({"name": "said", "goal": "In turn.", "classes": [{"name": "everyone", "order": "fifo"}]})
    expected = run("compose", spec).stdout
    assert run("compose", "-", given=SPEC).stdout == expected
    assert run("compose", "-", given=as_json).stdout == expected
    files = [str(tmp_path / "out" / name) for name in ("said.bpf.c", "said.toml")]
    assert run("compose", "-", "--output", tmp_path / "out", given=SPEC).stdout.splitlines() == files
    refused(run("compose", "-", given="name = "), "spec of stdin is not valid TOML")
    refused(run("compose", "-", given="{"), "spec of stdin is not valid JSON")


def test_compose_never_takes_the_place_of_the_spec(run, tmp_path, monkeypatch):
    """The README's own example: a spec that is called like its policy, and --output . beside it."""
    monkeypatch.chdir(tmp_path)
    Path("said.toml").write_text(SPEC)
    for _again in range(2):
        composed = run("compose", "said.toml", "--output", ".")
        assert composed.stdout.splitlines() == ["said/said.bpf.c", "said/said.toml"]
    assert Path("said.toml").read_text() == SPEC
    assert policy_from_file(Path("said/said.bpf.c")).documented
    said = refused(run("compose", "-", "--output", ".", given=SPEC), "said.toml exists already, with other content")
    assert "remove" not in said
    assert "give another folder: --output DIR" in said


def test_compose_keeps_what_was_changed_by_hand(run, tmp_path):
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC)
    (tmp_path / "said.bpf.c").write_text("mine")
    refused(run("compose", spec, "--output", tmp_path), "exists already, with other content")
    assert (tmp_path / "said.bpf.c").read_text() == "mine"
    assert not (tmp_path / "said.toml").exists()


# --- runs of older versions ------------------------------------------------------------------------------------------


def test_a_run_that_an_older_version_finished_is_shown(run, script):
    """Its stored report has names that no report has any more."""
    run("optimize", "--workload", "true", "--iterations", "1")
    [listed] = json.loads(run("runs", "list", "--json").stdout)
    before = run("runs", "show", listed["run"], "--json").stdout
    older = json.loads(before)
    for candidate in (older["best"], *older["iterations"][0]["candidates"]):
        candidate["way"], candidate["mends"] = candidate.pop("origin"), candidate.pop("repairs")
    del older["approvals"], older["waiting"], older["deployment"], older["meaning"], older["verified_by"]
    with closing(sqlite3.connect(script.settings.state_dir / "repository.sqlite")) as store, store:
        store.execute("UPDATE runs SET report = ?", (json.dumps(older),))
    shown = run("runs", "show", listed["run"])
    assert shown.exit_code == 0
    assert "Verdict: longest_first is better" in shown.stdout
    assert run("runs", "show", listed["run"], "--json").stdout == before
    assert re.search(rf"│ {listed['run']} │ \d+ s ago +│ better +│ true +│", run("runs", "list").stdout)


def test_every_run_can_be_exported(run, script, tmp_path):
    table, page = tmp_path / "runs.csv", tmp_path / "runs.md"
    done = run("optimize", "true", "--export-csv", table, "--export-markdown", page)
    assert done.exit_code == 0, done.output
    rows = table.read_text().splitlines()
    assert len(rows) == 1 + script.log.count("run") - 1, "a heading, and all runs but the one that was observed"
    assert page.read_text().count("\n| ") >= len(rows) - 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--export-csv", "/nowhere/x.csv"), "--export-csv /nowhere/x.csv cannot be written"),
        (("--export-markdown", "/"), "--export-markdown / cannot be written"),
        (("--export-csv", "-"), "stdout is for the verdict"),
        (("--export-csv", "x.csv", "--parameter", "n=1,2"), "--export-csv takes one run, and --parameter makes 2"),
    ],
)
def test_an_export_that_cannot_be_is_refused_before_the_first_run(run, script, arguments, complaint):
    done = run("optimize", "true {n}" if "--parameter" in arguments else "true", *arguments)
    assert done.exit_code == 2
    assert complaint in done.stderr
    assert script.log == []
