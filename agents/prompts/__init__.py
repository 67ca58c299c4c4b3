"""The system prompts: one Markdown file per agent, under its name.

May import: nothing of ours.
"""

from __future__ import annotations

from pathlib import Path


def prompt(role: str) -> str:
    """Return the prompt of an agent: observation, planning, execution or learning."""
    return (Path(__file__).parent / f"{role}.md").read_text(encoding="utf-8").strip()
