# SPDX-License-Identifier: GPL-2.0-only
"""Shell completions: typer's own scripts, which ask the installed program, where each shell looks for them."""

from __future__ import annotations

from pathlib import Path

from typer.completion import get_completion_script  # type: ignore[attr-defined]

_ZSH_FIRST_USE = """
# zsh has just read this file because of a first completion: do that one, too.
if [ "$funcstack[1]" = "_schedagent" ]; then
    _schedagent_completion "$@"
fi
"""


def files(prefix: Path) -> dict[str, Path]:
    """Return the file of each shell; Debian's zsh looks into site-functions below /usr/local only."""
    zsh = "vendor-completions" if prefix == Path("/usr") else "site-functions"
    return {
        "bash": prefix / "share/bash-completion/completions/schedagent",
        "zsh": prefix / "share/zsh" / zsh / "_schedagent",
        "fish": prefix / "share/fish/vendor_completions.d/schedagent.fish",
    }


def script(shell: str) -> str:
    """Return what bash, zsh or fish is to read."""
    text: str = get_completion_script(prog_name="schedagent", complete_var="_SCHEDAGENT_COMPLETE", shell=shell)
    return f"{text}\n{_ZSH_FIRST_USE if shell == 'zsh' else ''}"
