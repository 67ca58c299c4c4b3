"""The import rules of ARCHITECTURE.md, checked on the syntax tree, so that lazy imports count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("schedagent", "agents", "verifier", "repo_store", "kernel_bpf")
SOURCES = sorted(path.relative_to(ROOT).as_posix() for package in OURS for path in (ROOT / package).rglob("*.py"))

LAYERS = {
    "schedagent.core": ("schedagent.core",),
    "kernel_bpf": ("kernel_bpf", "schedagent.core"),
    "repo_store": ("repo_store", "schedagent.core"),
    "verifier": ("verifier", "kernel_bpf", "schedagent.core"),
    "agents": ("agents", "verifier", "repo_store", "kernel_bpf", "schedagent.core"),
    "schedagent.schedagentd": ("schedagent.schedagentd", "kernel_bpf", "schedagent.core"),
    "schedagent.service": (
        *("schedagent.service", "agents", "verifier", "repo_store", "kernel_bpf", "schedagent.core"),
        *(
            "schedagent.wiring",
            "schedagent.approval",
            "schedagent.handover",
            "schedagent.options",
            "schedagent.progress",
            "schedagent.workbench",
        ),
        *("schedagent.daemon_client", "schedagent.schedagentd.tasks", "schedagent.schedagentd.breaker"),
        *("schedagent.schedagentd.deployment", "schedagent.schedagentd.systemd"),
    ),
    "schedagent": OURS,
}
"""Which of our packages a package may import; the longest matching key decides."""

AGENT_NODES = ("agents.observation", "agents.planning", "agents.execution", "agents.learning")

CONFINED = {
    "sqlalchemy": ("repo_store/*",),
    "alembic": ("repo_store/*",),
    "ctypes": ("kernel_bpf/*",),
    "pyroute2": ("kernel_bpf/*",),
    "langgraph": ("schedagent/graph.py", "schedagent/state.py", "schedagent/wiring.py"),
    "langchain_openai": ("agents/model.py",),
    "langchain_core": ("agents/model.py",),
    "openai": ("agents/model.py",),
    "mcp": ("schedagent/mcp_server.py",),
    "mcp_types": ("schedagent/mcp_server.py",),
    "uvicorn": ("schedagent/mcp_server.py",),
    "starlette": ("schedagent/mcp_server.py",),
    "anyio": ("schedagent/mcp_server.py", "schedagent/errand.py"),
    "prometheus_client": ("schedagent/metrics/*.py", "schedagent/metrics_cli.py"),
    "langsmith": ("agents/model.py", "schedagent/wiring.py"),
}
"""Outside libraries and the only files that may import them."""

INSIDE_THE_VM = ("verifier/microvm/guest*.py", "verifier/proving/*.py")
"""These run as the guest's agent, where there is neither a user's environment nor a log to keep."""

PROCESS_STARTERS = {
    "subprocess": {"run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"},
    "os": {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp"},
    "pty": {"spawn", "fork"},
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
}
PROCESS_DOOR = ("schedagent/core/proc.py", *INSIDE_THE_VM)
ENVIRONMENT_DOOR = ("schedagent/core/settings.py", *INSIDE_THE_VM)
PRINTERS = ("schedagent/cli.py",)


def violations(path: str, source: str) -> list[str]:
    """Return what the file at `path` (relative to the root) does against the rules."""
    tree = ast.parse(source, path)
    package = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    imported = list(_imported(tree, path))
    found = [problem for module in imported for problem in _import_problems(path, package, module)]
    return found + list(_use_problems(path, tree))


def _imported(tree: ast.AST, path: str) -> Iterator[str]:
    """Yield the dotted name of every import; names imported from a package count as possible modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, path)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _absolute(node: ast.ImportFrom, path: str) -> str:
    if node.level == 0:
        return node.module or ""
    parents = path.split("/")[: -node.level]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _import_problems(path: str, package: str, module: str) -> Iterator[str]:
    if module.partition(".")[0] in OURS:
        layer = max((key for key in LAYERS if _within(package, key)), key=len)
        if not any(_within(module, allowed) for allowed in LAYERS[layer]):
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
                yield f"line {node.lineno}: processes are started through schedagent.core.proc only"
            if module == "os" and names & {"environ", "environb", "getenv"} and not _matches(path, ENVIRONMENT_DOOR):
                yield f"line {node.lineno}: the environment is read in schedagent.core.settings only"
        if _is_print(node) and not _matches(path, PRINTERS):
            yield f"line {node.lineno}: only the command line prints"


def _is_print(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"


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


def test_every_package_is_looked_at() -> None:
    assert {path.split("/")[0] for path in SOURCES} == set(OURS)


@pytest.mark.parametrize("path", SOURCES)
def test_file_keeps_the_rules(path: str) -> None:
    assert violations(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("schedagent/core/x.py", "import verifier.pipeline", "schedagent.core may not import verifier.pipeline"),
        ("schedagent/core/x.py", "from schedagent import graph", "schedagent.core may not import schedagent.graph"),
        ("kernel_bpf/x.py", "from repo_store.store import Store", "kernel_bpf may not import repo_store.store.Store"),
        (
            "schedagent/schedagentd/x.py",
            "import verifier.pipeline",
            "schedagent.schedagentd may not import verifier.pipeline",
        ),
        (
            "schedagent/service/x.py",
            "from schedagent.schedagentd.kernel import HostKernel",
            "schedagent.service may not import schedagent.schedagentd.kernel.HostKernel",
        ),
        ("repo_store/x.py", "def f():\n    import kernel_bpf", "repo_store may not import kernel_bpf"),
        ("verifier/x.py", "from schedagent.wiring import build", "verifier may not import schedagent.wiring.build"),
        ("verifier/microvm/x.py", "from ...agents import tools", "verifier may not import agents.tools"),
        ("agents/tools.py", "import schedagent.cli", "agents may not import schedagent.cli"),
        ("agents/planning.py", "from agents import learning", "agents never import each other: agents.learning"),
        ("agents/planning.py", "from .execution import f", "agents never import each other: agents.execution.f"),
        ("agents/tools.py", "import sqlalchemy.orm", "only repo_store/* may import sqlalchemy"),
        ("agents/tools.py", "from mcp.server import Server", "only schedagent/mcp_server.py may import mcp"),
        ("schedagent/mcp_cli.py", "def f():\n    import uvicorn", "only schedagent/mcp_server.py may import uvicorn"),
        ("verifier/x.py", "from ctypes import CDLL", "only kernel_bpf/* may import ctypes"),
        ("verifier/x.py", "def f():\n    import pyroute2", "only kernel_bpf/* may import pyroute2"),
        (
            "agents/planning.py",
            "from langchain_openai import ChatOpenAI",
            "only agents/model.py may import langchain_openai",
        ),
        (
            "agents/conversation.py",
            "def f():\n    import langchain_core.messages",
            "only agents/model.py may import langchain_core",
        ),
        (
            "verifier/x.py",
            "import subprocess\nsubprocess.run(['ls'])",
            "line 2: processes are started through schedagent.core.proc only",
        ),
        (
            "verifier/x.py",
            "from subprocess import Popen",
            "line 1: processes are started through schedagent.core.proc only",
        ),
        (
            "agents/tools.py",
            "import os\nos.system('ls')",
            "line 2: processes are started through schedagent.core.proc only",
        ),
        (
            "agents/tools.py",
            "import os\nos.environ['A']",
            "line 2: the environment is read in schedagent.core.settings only",
        ),
        (
            "agents/tools.py",
            "import os\nos.getenv('A')",
            "line 2: the environment is read in schedagent.core.settings only",
        ),
        ("verifier/x.py", "from os import environ", "line 1: the environment is read in schedagent.core.settings only"),
        ("schedagent/report.py", "print('x')", "line 1: only the command line prints"),
    ],
)
def test_rules_fire(path: str, source: str, expected: str) -> None:
    assert violations(path, source) == [expected]


def test_langgraph_is_confined() -> None:
    [problem] = violations("schedagent/cli.py", "from langgraph.graph import StateGraph")
    assert problem.endswith("may import langgraph")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("schedagent/wiring.py", "import langgraph.graph, agents.planning, repo_store.store, verifier.lab"),
        ("agents/planning.py", "from agents import schemas\nfrom agents.model import Model"),
        ("verifier/microvm/guest.py", "import os\nos.environ['A']\nos.fork()"),
        (
            "verifier/x.py",
            "import subprocess\ndef f(p: subprocess.Popen[bytes]):\n    raise subprocess.TimeoutExpired('a', 1)",
        ),
        ("schedagent/cli.py", "print('x')"),
        ("schedagent/core/settings.py", "import os\nos.environ"),
    ],
)
def test_rules_allow(path: str, source: str) -> None:
    assert violations(path, source) == []
