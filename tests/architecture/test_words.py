"""The words that we use: those of the field instead of private ones, and names that hold a meaning."""

from __future__ import annotations

import ast
import re
import subprocess

import pytest

from tests.support.packages import SOURCES
from tests.support.paths import ROOT

LEFT_BEHIND = {
    r"\berrands?\b": "slow tool call",
    r"\bworkshops?\b": "policy builder",
    r"\bmade polic(y|ies)\b": "derived policy",
    r"\bkept reports?\b": "cached report",
    r"\b(un)?mend(s|ed|ing)?\b": "fix, repair",
    r"\bgo(es)? on (behind|with|:)|\bgo on\b": "continue(s)",
    r"\bbehind (its|the) last (finished|completed) step": "after the last completed step",
    r"\bsaid instead of written\b": "describe a policy instead of coding it",
    r"\bclos(es|ed) (the|its|their) (way|gate)\b|\bgates? (is )?closed\b": "stops here, gate failed",
    r"\bhand(s|ed|ing)? out (a|the|no|its) ([\w']+ )?token": "issues a token",
    r"\bturns? on a CPU\b|\b(by|in) turns\b": "run, round robin",
    r"\banew\b": "again",
    r"\bfor ever\b": "indefinitely",
    r"\bbe rid of\b": "unload",
    r"\bwhat (it|they) (has|have) not\b": "what it lacks",
    r"\b(file|page|report|program|daemon|log|table|exporter|schedagentd?|\.py`?|\.md\)?) (tells|says)\b": "shows",
    r"\b(is|are|was|were|be|been) told(?! apart)\b": "is reported, shown",
}
"""What is said no longer, and what to say."""

MEANINGLESS = frozenset({"told", "found", "one", "said", "asked"})
DOCUMENTS = (
    "*.md",
    "agents/prompts/*.md",
    "schedagent/cli/guide/texts/*.md",
    "deploy/**",
    "kernel_bpf/bpf/**",
    "docker/*",
)
NOT_READ = ("*.json", "*.o", "CHANGELOG.md", "repo_store/migrations/versions/*")
"""Generated, or what was: each migration speaks of its own time."""


def texts() -> list[str]:
    """Return the files whose words count: our sources and everything that people read."""
    return sorted({*SOURCES, *tracked(DOCUMENTS)} - tracked(NOT_READ))


def tracked(patterns: tuple[str, ...]) -> set[str]:
    """Return the files that git tracks and that match."""
    words = ["git", "ls-files", "-z", *patterns]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(listed.split("\0")) - {""}


def left_behind(text: str) -> list[str]:
    """Return the places in a text that use a word which we left behind, and what to say instead."""
    flat = re.sub(r"[ \t]*\n[ \t]*(?:[#*]|//)?[ \t]*", " ", text)
    return [
        f"{match[0]!r} in {flat[max(0, match.start() - 30) : match.end() + 20]!r}: say {instead}"
        for pattern, instead in LEFT_BEHIND.items()
        for match in re.finditer(pattern, flat, re.IGNORECASE)
    ]


def meaningless(source: str) -> list[str]:
    """Return the names of variables, parameters and functions that hold no meaning."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.id))
        elif isinstance(node, ast.arg):
            names.append((node.lineno, node.arg))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.append((node.lineno, node.name))
    return [f"line {line}: {name}" for line, name in names if name in MEANINGLESS]


@pytest.mark.parametrize("path", texts())
def test_words_are_the_fields_own(path: str) -> None:
    assert left_behind((ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", SOURCES)
def test_names_hold_a_meaning(path: str) -> None:
    assert meaningless((ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "The workshop makes it.",
        "It goes on behind the last\n# finished step.",
        "SECURITY.md says how.",
        "a gate closed",
        "issues it anew",
        "it is told\nfor each kernel",
        "hands out the winner's token",
    ],
)
def test_a_word_left_behind_is_found(text: str) -> None:
    assert left_behind(text)


def test_fields_words_are_left_alone() -> None:
    assert left_behind("We recommend to continue; tasks are told apart by their cgroup; a turnaround.") == []


def test_a_name_without_meaning_is_found() -> None:
    assert meaningless("def f(told):\n    return [one for one in told]") == ["line 1: told", "line 2: one"]
