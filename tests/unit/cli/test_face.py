"""The face of the command line: help, the forms of a workload, bounds of the machine, previews, topics and settings."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
import typer

from kernel_bpf.load.sched_ext import KernelState
from kernel_bpf.observe.schedulers import Scheduler
from schedagent.cli import app as cli
from schedagent.cli import common, deploy
from schedagent.cli.grouped import HELP_OPTIONS
from schedagent.cli.guide.statuses import statuses_of
from schedagent.cli.guide.topics import load_topics
from schedagent.client import local
from schedagent.core.settings import load_settings
from schedagent.run import opening
from tests.support import scripted_lab as scripted
from tests.support.command_line import refused
from tests.support.paths import ROOT

COMMAND = typer.main.get_command(cli.app)
VERBS = [
    [name, *below]
    for name, command in COMMAND.commands.items()
    for below in ([[verb] for verb in getattr(command, "commands", ())] or [[]])
]
"""Every verb, groups without themselves."""


def command_of(words):
    command = COMMAND
    for word in words:
        command = command.commands[word]
    return command


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [[], *VERBS], ids=" ".join)
def test_h_is_help(run, verb):
    asked = run(*verb, "-h")
    assert asked.exit_code == 0
    assert asked.stdout == run(*verb, "--help").stdout
    assert "-h, --help" in asked.stdout


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_the_example_of_every_verb_is_one_that_it_takes(run, verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    [example] = re.findall(r"^ *Example: (.*)$", run(*verb, "--help").stdout, re.MULTILINE)
    assert f"Example: {example}" in command_of(verb).help, "the line was broken"
    program, *words = shlex.split(example)
    assert [program, *words[: len(verb)]] == ["schedagent", *verb]
    assert command_of(verb).make_context(verb[-1], words[len(verb) :])


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_no_help_shows_a_python_type(run, verb):
    text = run(*verb, "--help").stdout
    assert not re.search(r"<[^>]*>|[{}]|<=", text), text


def test_choices_and_ranges_are_in_words(run):
    text = run("optimize", "--help").stdout
    for choices in ("[makespan|latency|throughput]", "[none|plan|deploy|plan,deploy]"):
        assert choices in text
    assert "1 to 100]" in text
    assert "[pulse|canary|full]" in run("deploy", "--help").stdout
    assert "[-1 or\n                  more]" in run("watch", "--help").stdout
    assert "[default: 0; 0 or more]" not in run("rollback", "--help").stdout, "all, if left out"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["renew", "x"], "'NUMBER': must be a whole number"),
        (["renew", "1", "--lease", "soon"], "'--lease': must be a number"),
        (["optimize", "true", "--cpus", "0"], "'--cpus': must be 1 or more"),
        (["history", "--limit", "500"], "'--limit': must be 200 or less"),
        (["deploy", "x", "--stage", "big"], "'--stage': 'big' is not one of 'pulse', 'canary', 'full'."),
    ],
)
def test_what_is_wrong_with_a_value_is_said_for_people(run, words, said):
    done = run(*words)
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    assert "Input should" not in done.stderr


def test_a_path_that_is_not_there_is_bad_usage(run):
    refused(run("kernels", "use", "/nowhere"), "/nowhere is not there")


# --- what an import costs --------------------------------------------------------------------------------------------

UNNEEDED = ("langgraph", "langchain_core", "langchain_openai", "langsmith", "openai", "scipy", "numpy", "mcp")
UNNEEDED += ("alembic", "prometheus_client", "cryptography")
UNNEEDED_OURS = ("agents", "verifier", "schedagent.run.opening", "schedagent.run.lifecycle", "kernel_bpf.build.compile")


def imported_by(*words):
    """The modules that a command needs, once its state folder is there."""
    script = (
        "import sys; from schedagent.cli.app import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    ("words", "besides"),
    [
        (["runs", "list"], ()),
        (["status"], ("sqlalchemy", "repo_store")),
        (["help", "verdict"], ("sqlalchemy", "repo_store", "kernel_bpf.load")),
        (["config", "show"], ("sqlalchemy", "repo_store", "kernel_bpf.load")),
    ],
    ids=str,
)
def test_what_only_reads_imports_no_more_than_it_needs(run, folders, words, besides):
    run("runs", "list")
    modules = imported_by(*words)
    assert {name for name in (*UNNEEDED, *UNNEEDED_OURS, *besides) if name in modules} == set()


# --- the workload ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["true x"], "true x"),
        (["--", "true", "-j"], "true -j"),
        (["--workload", "true -j"], "true -j"),
        (["true", "a b"], "true 'a b'"),
        (["--", "true", "--dir", "$HOME"], "true --dir '$HOME'"),
        (["true && true"], "true && true"),
    ],
    ids=str,
)
def test_the_forms_of_a_workload(run, script, words, command):
    shown = json.loads(run("optimize", "--dry-run", "--json", *words).stdout)
    assert shown["workload"]["command"] == command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["true", "--workload", "true"], "the workload is given twice: true, and --workload 'true' hint: give"),
        ([], "no workload is given hint: .*schedagent optimize"),
        ([""], "--workload is empty"),
        (["true", "--cpus", "1000"], r"--cpus 1000 is more than this host has hint: accepted: 1 to \d+"),
        (["true", "--cpus", "0"], "--cpus"),
        (["true", "--memory", "90000G"], r"--memory 92160000M cannot be had hint: accepted: 512M to \d+M"),
        (["true", "--memory", "1M"], "--memory 1M cannot be had"),
        (["true", "--memory", "0"], "--memory '0' is not a size"),
        (["true", "--memory", "5 G"], "--memory '5 G' is not a size hint: accepted: a number of MiB, or .*: 3072M, 3G"),
        (["true", "--memory", "3B"], "--memory '3B' is not a size"),
    ],
    ids=str,
)
def test_bad_forms(run, folders, words, message):
    refused(run("optimize", *words), message)
    assert not (folders / "state").exists()


# --- the machine and the preview -------------------------------------------------------------------------------------


@pytest.fixture
def sizes(script, monkeypatch):
    """The sizes of the labs that are opened."""
    opened = []

    def open_lab(settings):
        opened.append((settings.vm_cpus, settings.vm_memory_mib))
        return scripted.Lab(script)

    monkeypatch.setattr(opening, "open_lab", open_lab)
    return opened


def test_a_run_keeps_its_size_when_it_is_resumed(run, sizes, script):
    result = run("optimize", "true", "--cpus", "1", "--memory", "1G", "--approve", "plan", "--quiet")
    assert result.exit_code == common.EXIT_WAITING
    [listed] = json.loads(run("runs", "list", "--json").stdout)
    run("approve", listed["run"])
    assert sizes == [(1, 1024), (1, 1024)]


def test_a_preview_shows_all_and_stores_nothing(run, sizes, script, folders):
    bounds = ("--cpus", "1", "--memory", "512", "--approve", "plan")
    result = run("optimize", "--dry-run", "true", "--prepare", "true", *bounds)
    assert result.exit_code == 0
    assert sizes == [(1, 512)]
    for words in (
        "'true' in ",
        "prepare:   true",
        "vm-tcg, 2 CPUs, 2048 MiB, kernel 7.3.4",
        "tried:     up to 2 plans, each of up to 3 candidates",
        "approvals: plan",
        "no trial begins after 30 min",
        "not known: this workload was not measured here yet",
    ):
        assert words in result.stdout
    assert script.log == []
    assert not (folders / "state").exists()


def test_a_preview_knows_what_earlier_runs_took(run, sizes, script):
    run("optimize", "true", "--iterations", "1")
    [listed] = json.loads(run("runs", "list", "--json").stdout)
    before = len(script.log)
    text = run("optimize", "--dry-run", "true").stdout
    assert re.search(rf"duration: +about .* and the gates; one run took \d+\.\d s in {listed['run']}", text)
    assert len(script.log) == before
    assert len(json.loads(run("runs", "list", "--json").stdout)) == 1


def test_quiet_shows_the_result_alone(run, sizes, script):
    result = run("optimize", "true", "--iterations", "1", "--quiet")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "Verdict: longest_first is better" in result.stdout


def test_progress_shows_the_time_left(run, script):
    progress = run("optimize", "true", "--iterations", "1").stderr
    assert re.search(r"== observation: .* \(30 min of the budget left\)", progress)
    assert re.search(r"measuring the best again: [2-9] done, at most 27 \(at most \d+ (s|min) more\)", progress)


def test_the_next_step_after_a_win_is_to_deploy(run, script, monkeypatch):
    signing = replace(script, signs=True)
    monkeypatch.setattr(opening, "open_verifier", lambda _settings: scripted.Verifier(signing))
    text = run("optimize", "true", "--iterations", "1").stdout
    run_id = re.search(r"Run (\S+):", text).group(1)
    assert f"Next: schedagent deploy {run_id}\n" in text
    assert "schedagent help deploying" in text


# --- runs ------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_by_limit_and_status(run, script):
    for _ in range(2):
        run("optimize", "true", "--iterations", "1", "--quiet")
    run("optimize", "true", "--approve", "plan", "--quiet")
    every = json.loads(run("runs", "list", "--json").stdout)
    assert len(every) == 3
    assert json.loads(run("runs", "list", "--limit", "1", "--json").stdout) == every[:1]
    waiting = json.loads(run("runs", "list", "--status", "waiting", "--json").stdout)
    assert [entry["status"] for entry in waiting] == ["waiting"]
    refused(run("runs", "list", "--status", "done"), "--status 'done' is not known hint: accepted: running, waiting")


def test_runs_are_deleted_after_a_yes(run, script):
    for _ in range(2):
        run("optimize", "true", "--iterations", "1", "--quiet")
    kept, deleted = (entry["run"] for entry in json.loads(run("runs", "list", "--json").stdout))
    refused(run("runs", "delete", deleted), "nobody can be asked whether to delete hint: add --yes")
    refused(run("runs", "delete", deleted, "nonsense", "--yes"), "there is no run 'nonsense'")
    assert len(json.loads(run("runs", "list", "--json").stdout)) == 2
    assert run("runs", "delete", deleted, "--yes").stdout == f"deleted: {deleted}\n"
    assert [entry["run"] for entry in json.loads(run("runs", "list", "--json").stdout)] == [kept]


def test_a_run_that_waits_is_not_deleted(run, script):
    run("optimize", "true", "--approve", "plan", "--quiet")
    [listed] = json.loads(run("runs", "list", "--json").stdout)
    refused(run("runs", "delete", listed["run"], "--yes"), "nothing was deleted.*waits for an approval")
    assert run("runs", "show", listed["run"]).exit_code == 0


# --- status ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_daemon(monkeypatch, tmp_path):
    from schedagent.client import daemon

    monkeypatch.setattr(daemon, "SOCKET", tmp_path / "none")


def test_status_without_a_daemon_shows_the_scheduler_of_somebody_else(run, no_daemon, monkeypatch):
    state = KernelState(available=True, state="enabled", ops="lavd", switch_all=True, enable_seq=3)
    monkeypatch.setattr(local, "kernel_state", lambda: state)
    monkeypatch.setattr(local, "other_schedulers", lambda: iter([Scheduler("scx_lavd", 7, "scx.service")]))
    result = run("status")
    assert result.exit_code == 0
    assert result.stdout.startswith("in charge: lavd\n")
    assert '"scx_lavd", process 7 of scx.service); to deploy: systemctl disable --now scx.service' in result.stdout
    assert "sched_ext is enabled, lavd for all normal tasks" in result.stdout
    assert "enabled since boot: 3" in result.stdout
    answer = json.loads(run("status", "--json").stdout)
    assert (answer["schedagentd"], answer["kernel"]["enable_seq"]) == ("not running", 3)


def test_status_on_a_kernel_without_sched_ext(run, no_daemon, monkeypatch):
    monkeypatch.setattr(local, "kernel_state", lambda: KernelState(available=False))
    result = run("status")
    assert result.exit_code == 0
    assert result.stdout.startswith("in charge: the default scheduler\n")
    assert ": no sched_ext\n" in result.stdout


# --- topics and settings ---------------------------------------------------------------------------------------------


def test_topics_are_listed_and_shown(run):
    listed = run("help").stdout
    for name, topic in load_topics().items():
        assert re.search(rf"^  {name} +{re.escape(topic.title)}$", listed, re.MULTILINE)
        text = run("help", name).stdout
        assert text.startswith(f"# {topic.title}\n")
        assert max(map(len, text.splitlines())) <= 78
    assert {"approvals", "deploying", "files", "mcp", "metrics", "models", "service", "verdict"} <= set(load_topics())


def test_help_of_a_verb_and_of_nothing(run):
    assert run("help", "runs", "list").stdout == run("runs", "list", "-h").stdout
    refused(run("help", "nonsense"), "there is no topic 'nonsense' hint: topics: approvals, .*name of a command")


COMMANDS_IN_TOPICS = [
    (name, line.strip())
    for name, topic in load_topics().items()
    for line in re.findall(r"^ {4,}(?:sudo )?(schedagent [^\\\n#]*)", topic.body, re.MULTILINE)
]


@pytest.mark.parametrize(("topic", "line"), COMMANDS_IN_TOPICS, ids=str)
def test_every_command_of_a_topic_is_one_that_exists(topic, line):
    words = shlex.split(line.partition(" | ")[0].partition(" > ")[0])[1:]
    command, context = COMMAND, COMMAND.context_class(COMMAND, info_name="schedagent", **HELP_OPTIONS)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    words = ["7" if word == "1" else word for word in words]
    assert command.make_context(command.name, words, parent=context)


def test_exit_statuses_of_verbs(run):
    assert statuses_of("verify")[common.EXIT_NO] == "a gate rejected the policy"
    assert set(statuses_of("keys list")) == {0, common.EXIT_FAILED, common.EXIT_USAGE, common.EXIT_INTERRUPTED}
    assert common.EXIT_WAITING in statuses_of("resume")


def test_settings_with_their_origin(run, folders, monkeypatch):
    file = folders / "config" / "schedagent" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('model_name = "small"\nmodel_timeout_s = 5\nmodel_api_key = "do-not-show-me"\n')
    monkeypatch.setenv("SCHEDAGENT_MODEL", "large")
    monkeypatch.setenv("SCHEDAGENT_MCP_TOKEN", "neither-show-me-" * 3)
    shown = run("config", "show", "--json").stdout
    rows = {row["key"]: (row["value"], row["origin"]) for row in json.loads(shown)["settings"]}
    assert rows["model_name"] == ("large", "SCHEDAGENT_MODEL")
    assert rows["model_timeout_s"] == (5, str(file))
    assert rows["model_max_calls"] == (load_settings().model_max_calls, "default")
    assert rows["cache_dir"] == (str(folders / "cache"), "SCHEDAGENT_CACHE")
    text = run("config", "show").stdout
    assert re.search(rf"^model_timeout_s = 5 +# {re.escape(str(file))}$", text, re.MULTILINE)
    for answer in (shown, text):
        assert "show-me" not in answer
        assert "(secret)" in answer


def test_a_socket_that_was_named_has_to_answer(run, tmp_path):
    refused(run("status", "--socket", tmp_path / "none"), "schedagentd is not running", common.EXIT_FAILED)
    assert deploy.client(tmp_path / "none").path == tmp_path / "none"
