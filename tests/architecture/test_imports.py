"""The import rules: what each package's docstring allows, and no circle; lazy imports and TYPE_CHECKING count."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.support.packages import OURS, SOURCES, module_of, packages
from tests.support.paths import ROOT

MODULES = frozenset(map(module_of, SOURCES))
LAYERS = {name: (name, *package.may_import) for name, package in packages().items()}
"""Which of our packages a package may import; the longest matching key decides."""

AGENT_NODES = ("agents.observation", "agents.planning", "agents.execution", "agents.learning")

CONFINED = {
    "sqlalchemy": ("repo_store/*",),
    "alembic": ("repo_store/*",),
    "ctypes": ("kernel_bpf/*",),
    "pyroute2": ("kernel_bpf/*",),
    "langgraph": ("schedagent/run/graph.py", "schedagent/run/state.py", "schedagent/run/lifecycle.py"),
    "langchain_openai": ("agents/llm/model.py",),
    "langchain_core": ("agents/llm/model.py",),
    "openai": ("agents/llm/model.py",),
    "mcp": ("schedagent/mcp/server.py",),
    "mcp_types": ("schedagent/mcp/server.py",),
    "uvicorn": ("schedagent/mcp/server.py", "schedagent/mcp/connections.py"),
    "starlette": ("schedagent/mcp/server.py",),
    "anyio": ("schedagent/mcp/server.py", "schedagent/mcp/slow_call.py"),
    "regex": ("schedagent/core/readings/metric.py",),
    "prometheus_client": ("schedagent/metrics/*.py", "schedagent/cli/metrics.py"),
    "matplotlib": ("schedagent/report/page/plots.py",),
    "langsmith": ("agents/llm/model.py", "schedagent/run/lifecycle.py"),
}
"""Outside libraries and the only files that may import them."""

INSIDE_THE_VM = ("verifier/guest/*.py", "verifier/proving/*.py")
"""These run as the guest's agent, where there is neither a user's environment nor a log to keep."""

PROCESS_STARTERS = {
    "subprocess": {"run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"},
    "os": {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp"},
    "pty": {"spawn", "fork"},
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
}
PROCESS_DOOR = ("schedagent/core/process/proc.py", *INSIDE_THE_VM)
ENVIRONMENT_DOOR = ("schedagent/core/settings.py", *INSIDE_THE_VM)
PRINTERS = ("schedagent/cli/app.py",)
CONSOLE_DOOR = ("schedagent/core/terminal/console.py",)


def violations(path: str, source: str) -> list[str]:
    """Return what the file at `path` (relative to the root) does against the rules."""
    tree = ast.parse(source, path)
    package = module_of(path)
    imported = list(_imported(tree, path))
    found = [problem for module in imported for problem in _import_problems(path, package, module)]
    return found + list(_use_problems(path, tree))


def _imported(tree: ast.AST, path: str) -> Iterator[str]:
    """Yield the dotted name of every imported module; of ours, what is no module is a name in its package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, path)
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from (base if base in MODULES and name not in MODULES else name for name in names)


def _absolute(node: ast.ImportFrom, path: str) -> str:
    if node.level == 0:
        return node.module or ""
    parents = path.split("/")[: -node.level]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _import_problems(path: str, package: str, module: str) -> Iterator[str]:
    if module.partition(".")[0] in OURS:
        layer = max((key for key in LAYERS if _within(package, key)), key=len)
        if not any(_within(module, allowed) for allowed in LAYERS[layer]) and not _within(package, module):
            yield f"{layer} may not import {module}"
        if any(
            _within(module, node) and _within(package, own)
            for own in AGENT_NODES
            for node in AGENT_NODES
            if own != node
        ):
            yield f"agents never import each other: {module}"
    for library, files in CONFINED.items():
        if _within(module, library) and not _matches(path, files):
            yield f"only {', '.join(files)} may import {library}"


def _use_problems(path: str, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        used = _dotted_use(node)
        for module, names in used:
            if names & PROCESS_STARTERS.get(module, set()) and not _matches(path, PROCESS_DOOR):
                yield f"line {node.lineno}: processes are started through schedagent.core.process.proc only"
            if module == "os" and names & {"environ", "environb", "getenv"} and not _matches(path, ENVIRONMENT_DOOR):
                yield f"line {node.lineno}: the environment is read in schedagent.core.settings only"
        if _calls(node, "print") and not _matches(path, PRINTERS):
            yield f"line {node.lineno}: only the command line prints"
        if _calls(node, "Console") and not _matches(path, CONSOLE_DOOR):
            yield f"line {node.lineno}: a console is opened by schedagent.core.terminal.console.open_console only"


def _calls(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _dotted_use(node: ast.AST) -> list[tuple[str, set[str]]]:
    """Return (module, names) for `module.name` in a value position and for `from module import names`."""
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "", {alias.name for alias in node.names})]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        return [(node.func.value.id, {node.func.attr})]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
        return [("os", {node.attr} & {"environ", "environb"})]
    return []


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def import_graph(changed: Mapping[str, str] = {}) -> dict[str, set[str]]:
    """Return which of our modules imports which, lazily or not.

    Args:
        changed: sources by path that stand for those on the disk.
    """
    graph = {}
    for path in SOURCES:
        source = changed.get(path) or (ROOT / path).read_text(encoding="utf-8")
        graph[module_of(path)] = {name for name in _imported(ast.parse(source), path) if name in MODULES}
    return graph


def package_graph(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return which of our packages imports from which, but for a package and those inside it: these are one room."""
    packages = {module_of(path) for path in SOURCES if path.endswith("/__init__.py")}
    home = {module: module if module in packages else module.rpartition(".")[0] for module in graph}
    between: dict[str, set[str]] = {package: set() for package in home.values()}
    for module, imported in graph.items():
        here = home[module]
        between[here] |= {
            home[name] for name in imported if not _within(home[name], here) and not _within(here, home[name])
        }
    return between


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return one circle of a graph, empty if it has none."""
    try:
        TopologicalSorter({node: after - {node} for node, after in graph.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_in_a_circle() -> None:
    assert circle(import_graph()) == []


def test_no_package_imports_itself_in_a_circle() -> None:
    assert circle(package_graph(import_graph())) == []


@pytest.mark.parametrize(
    ("path", "added"),
    [
        ("verifier/logic/walk/terms.py", "def f():\n    from verifier.logic.walk import facts\n"),
        ("schedagent/cli/common.py", "from schedagent.cli.optimize import show_report\n"),
        ("repo_store/records.py", "if TYPE_CHECKING:\n    from repo_store.store import PolicyRepository\n"),
    ],
)
def test_a_circle_inside_a_package_is_found(path: str, added: str) -> None:
    changed = {path: (ROOT / path).read_text(encoding="utf-8") + added}
    assert module_of(path) in circle(import_graph(changed))


def test_a_circle_of_packages_is_found() -> None:
    path = "schedagent/report/model_use.py"
    changed = {path: "from schedagent.run.options import RunOptions"}
    assert {"schedagent.report", "schedagent.run"} <= set(circle(package_graph(import_graph(changed))))


def test_every_package_says_what_it_may_import() -> None:
    packages = {module_of(path) for path in SOURCES if path.endswith("/__init__.py")}
    assert packages == set(LAYERS)


def test_every_package_is_looked_at() -> None:
    assert {path.split("/")[0] for path in SOURCES} == set(OURS)


@pytest.mark.parametrize("path", SOURCES)
def test_file_keeps_the_rules(path: str) -> None:
    assert violations(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("schedagent/core/x.py", "import verifier.pipeline", "schedagent.core may not import verifier.pipeline"),
        (
            "schedagent/core/x.py",
            "from schedagent.run import graph",
            "schedagent.core may not import schedagent.run.graph",
        ),
        ("kernel_bpf/x.py", "from repo_store.store import Store", "kernel_bpf may not import repo_store.store"),
        (
            "schedagent/schedagentd/x.py",
            "import verifier.pipeline",
            "schedagent.schedagentd may not import verifier.pipeline",
        ),
        (
            "schedagent/service/x.py",
            "from schedagent.schedagentd.kernel import HostKernel",
            "schedagent.service may not import schedagent.schedagentd.kernel",
        ),
        ("repo_store/x.py", "def f():\n    import kernel_bpf", "repo_store may not import kernel_bpf"),
        (
            "verifier/x.py",
            "from schedagent.run.lifecycle import build",
            "verifier may not import schedagent.run.lifecycle",
        ),
        ("verifier/microvm/x.py", "from ...agents import tools", "verifier.microvm may not import agents.tools"),
        ("agents/tools/catalog.py", "import schedagent.cli.app", "agents.tools may not import schedagent.cli.app"),
        ("agents/planning.py", "from agents import learning", "agents never import each other: agents.learning"),
        ("agents/planning.py", "from .execution import f", "agents never import each other: agents.execution"),
        ("agents/tools/catalog.py", "import sqlalchemy.orm", "only repo_store/* may import sqlalchemy"),
        ("agents/tools/catalog.py", "from mcp.server import Server", "only schedagent/mcp/server.py may import mcp"),
        (
            "schedagent/cli/mcp.py",
            "def f():\n    import uvicorn",
            "only schedagent/mcp/server.py, schedagent/mcp/connections.py may import uvicorn",
        ),
        ("verifier/x.py", "from ctypes import CDLL", "only kernel_bpf/* may import ctypes"),
        ("verifier/x.py", "def f():\n    import pyroute2", "only kernel_bpf/* may import pyroute2"),
        (
            "agents/planning.py",
            "from langchain_openai import ChatOpenAI",
            "only agents/llm/model.py may import langchain_openai",
        ),
        (
            "agents/llm/conversation.py",
            "def f():\n    import langchain_core.messages",
            "only agents/llm/model.py may import langchain_core",
        ),
        (
            "verifier/x.py",
            "import subprocess\nsubprocess.run(['ls'])",
            "line 2: processes are started through schedagent.core.process.proc only",
        ),
        (
            "verifier/x.py",
            "from subprocess import Popen",
            "line 1: processes are started through schedagent.core.process.proc only",
        ),
        (
            "agents/tools/catalog.py",
            "import os\nos.system('ls')",
            "line 2: processes are started through schedagent.core.process.proc only",
        ),
        (
            "agents/tools/catalog.py",
            "import os\nos.environ['A']",
            "line 2: the environment is read in schedagent.core.settings only",
        ),
        (
            "agents/tools/catalog.py",
            "import os\nos.getenv('A')",
            "line 2: the environment is read in schedagent.core.settings only",
        ),
        ("verifier/x.py", "from os import environ", "line 1: the environment is read in schedagent.core.settings only"),
        ("schedagent/report/terminal.py", "print('x')", "line 1: only the command line prints"),
        (
            "schedagent/report/terminal.py",
            "from rich.console import Console\nConsole().print('x')",
            "line 2: a console is opened by schedagent.core.terminal.console.open_console only",
        ),
    ],
)
def test_rules_fire(path: str, source: str, expected: str) -> None:
    assert violations(path, source) == [expected]


def test_langgraph_is_confined() -> None:
    [problem] = violations("schedagent/cli/app.py", "from langgraph.graph import StateGraph")
    assert problem.endswith("may import langgraph")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("schedagent/run/lifecycle.py", "import langgraph.graph, agents.planning, repo_store.store, verifier.lab.vm"),
        ("agents/planning.py", "from agents import schemas\nfrom agents.llm.model import Model"),
        ("verifier/guest/agent.py", "import os\nos.environ['A']\nos.fork()"),
        (
            "verifier/x.py",
            "import subprocess\ndef f(p: subprocess.Popen[bytes]):\n    raise subprocess.TimeoutExpired('a', 1)",
        ),
        ("schedagent/cli/app.py", "print('x')"),
        ("schedagent/core/settings.py", "import os\nos.environ"),
    ],
)
def test_rules_allow(path: str, source: str) -> None:
    assert violations(path, source) == []
