"""The Python interface: `import schedagent` is cheap, its names are typed, and its functions do what the verbs do."""

from __future__ import annotations

import ast
import inspect
import json
import pkgutil
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import replace

import pytest

import schedagent
from schedagent import api
from schedagent.core.approval import ApprovalStage
from schedagent.core.errors import SpecError, UsageError
from schedagent.core.policies.spec_reader import read_spec
from schedagent.report.as_json import to_json
from tests.support import scripted_lab as scripted
from tests.support.paths import ROOT

SPEC = {"name": "mine", "goal": "Each in its turn.", "classes": [{"name": "all", "order": "fifo"}]}


@pytest.fixture
def project(folders, monkeypatch):
    """A home with the project of the examples."""
    monkeypatch.setenv("HOME", str(folders))
    path = folders / "src" / "project"
    path.mkdir(parents=True)
    return path


# --- its names -------------------------------------------------------------------------------------------------------


def imported_by(code: str) -> set[str]:
    script = f"import sys; before = set(sys.modules); {code}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def test_importing_it_imports_nothing_but_the_standard_library():
    roots = {name.partition(".")[0] for name in imported_by("import schedagent")}
    assert roots - sys.stdlib_module_names == {"schedagent"}
    assert not any(name.startswith("schedagent.") for name in imported_by("import schedagent"))


def test_its_functions_load_only_what_they_need():
    roots = {name.partition(".")[0] for name in imported_by("import schedagent; schedagent.optimize")}
    assert roots - sys.stdlib_module_names == {"schedagent"}
    roots = {name.partition(".")[0] for name in imported_by(f"import schedagent; schedagent.compose({SPEC!r})")}
    assert not roots & {"sqlalchemy", "scipy", "pydantic", "rich", "langgraph"}


def test_every_name_is_there_and_is_what_its_module_defines():
    for name in schedagent.__all__:
        value = getattr(schedagent, name)
        assert value.__name__ == name
        assert value is getattr(sys.modules[value.__module__], name)
    assert set(schedagent.__all__) < set(dir(schedagent))


def test_no_name_is_that_of_a_package():
    """Importing schedagent.run would put the package in the place of a function of that name."""
    assert not {module.name for module in pkgutil.iter_modules(schedagent.__path__)} & set(schedagent.__all__)


def test_every_function_of_the_api_is_offered():
    functions = {name for name, value in vars(api).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert functions < set(schedagent.__all__)


def test_type_checkers_see_every_name_and_no_other():
    """What mypy reads is the block for type checkers; it is as strict with these names as with any import."""
    tree = ast.parse((ROOT / "schedagent" / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(seen) == sorted(schedagent.__all__)
    assert seen == schedagent._HOMES


def test_type_checkers_read_the_installed_packages():
    """PEP 561: without this file a checker takes all names of an installed package for Any."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["*"] == ["py.typed"]
    assert all((ROOT / package / "py.typed").is_file() for package in project["tool"]["mypy"]["packages"][:5])


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        schedagent.nothing  # noqa: B018 - looking it up is the test


# --- the examples ----------------------------------------------------------------------------------------------------


def example(text: str | None) -> str:
    """The indented block of a docstring."""
    lines = inspect.cleandoc(text or "").splitlines()
    return textwrap.dedent("\n".join(line for line in lines if line.startswith("    ") or not line.strip()))


@pytest.mark.parametrize("module", [schedagent, api], ids=["schedagent", "schedagent.api"])
def test_the_example_of_the_docstring_runs(module, script, project, capsys):
    exec(compile(example(module.__doc__), f"the example of {module.__name__}", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("longest_first 0.")
    [run] = schedagent.runs()
    assert run.workload.directory == str(project)
    if module is schedagent:
        assert f"{run.id} finished make -j" in printed
        assert "SCX_OPS_DEFINE" in printed or "struct sched_ext_ops" in printed


# --- runs ------------------------------------------------------------------------------------------------------------


def test_the_report_is_that_of_the_command_line(run, script, project):
    report = schedagent.optimize("make -j", directory=project, options=schedagent.RunOptions(iterations=1))
    shown = json.loads(run("runs", "show", report.run, "--json").stdout)
    assert shown == json.loads(json.dumps(to_json(report)))
    assert shown == json.loads(json.dumps(to_json(schedagent.run_report(report.run))))


def test_a_workload_can_be_that_of_an_earlier_run(script, project):
    first = schedagent.optimize("make -j", directory=project, prepare="make clean")
    again = schedagent.optimize(schedagent.runs()[0].workload)
    assert again.workload == first.workload
    assert [record.id for record in schedagent.runs(limit=1)] == [again.run]


def test_progress_goes_to_the_reporter(script, project):
    from schedagent.run.progress import LineReporter

    lines: list[str] = []
    schedagent.optimize("make -j", directory=project, reporter=LineReporter(lines.append))
    assert any("planning, iteration 1" in line for line in lines)


def test_settings_decide_where_things_are(script, project, tmp_path):
    elsewhere = replace(schedagent.load_settings(), state_dir=tmp_path / "elsewhere")
    schedagent.optimize("make -j", directory=project, settings=elsewhere)
    assert len(schedagent.runs(settings=elsewhere)) == 1
    assert schedagent.runs() == []


def test_what_waits_is_decided(script, project):
    options = schedagent.RunOptions(iterations=1, approve=(ApprovalStage.PLAN,))
    waiting = schedagent.optimize("make -j", directory=project, options=options)
    run_id, digest = waiting.run, waiting.waiting.digest
    with pytest.raises(UsageError, match="waits for the approval of"):
        schedagent.decide(run_id, approved=True, digest="0" * 8)
    with pytest.raises(UsageError, match="because"):
        schedagent.decide(run_id, approved=False)
    assert schedagent.resume(run_id).waiting.digest == digest
    report = schedagent.decide(run_id, approved=True, digest=digest)
    assert report.complete
    assert report.best.candidate.policy == "longest_first"
    with pytest.raises(UsageError, match="is finished"):
        schedagent.resume(run_id)


def test_a_run_without_a_model_has_no_transcript(script, project):
    report = schedagent.optimize("make -j", directory=project)
    for asked_for in (schedagent.transcript, schedagent.replay):
        with pytest.raises(UsageError, match="has asked no model"):
            asked_for(report.run)


def test_a_refusal_names_the_argument(script, project):
    with pytest.raises(UsageError, match="--goal 'speed' is not known"):
        schedagent.optimize("make -j", directory=project, goal="speed")
    with pytest.raises(UsageError, match="there is no run 'nothing'"):
        schedagent.run_report("nothing")


# --- policies --------------------------------------------------------------------------------------------------------


def test_a_spec_is_composed_from_whatever_holds_it(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(SPEC))
    composed = schedagent.compose(SPEC)
    assert composed.name == "mine"
    assert schedagent.compose(path) == schedagent.compose(str(path)) == schedagent.compose(read_spec(SPEC)) == composed
    with pytest.raises(SpecError, match="goal: missing"):
        schedagent.compose({"name": "mine", "classes": SPEC["classes"]})
    with pytest.raises(UsageError, match="cannot be read"):
        schedagent.compose(tmp_path / "nothing.toml")


def test_the_library(script):
    assert list(schedagent.policies()) == sorted(scripted.LIBRARY)
    assert schedagent.policy("plain") == scripted.LIBRARY["plain"]
    with pytest.raises(UsageError, match="no policy 'plane'") as caught:
        schedagent.policy("plane")
    assert "did you mean plain?" in caught.value.hint
    assert [match.name for match in schedagent.search_policies("longest_first")] == ["longest_first"]


def test_a_policy_is_verified(script, monkeypatch):
    from schedagent.verification import files

    monkeypatch.setattr(files, "choose_verifier", lambda _settings, _options: script.verifier())
    gates: list[str] = []
    report = schedagent.verify("plain", on_gate=lambda result: gates.append(result.gate))
    assert report.passed
    assert report.policy == "plain"
    assert gates == [gate.gate for gate in report.gates]
    with pytest.raises(UsageError, match="is not a scope"):
        schedagent.verify("plain", options=schedagent.VerifyOptions(scope="all"))
