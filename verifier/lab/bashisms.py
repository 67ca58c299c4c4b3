"""What in a shell command only bash (zsh, ksh) understands, and what plain shells such as dash take for something else.

Not a parser: quoted text and comments are blanked first, then a few patterns are looked for. It is for hints only.
"""

from __future__ import annotations

import re

AMPERSAND_REDIRECTION = "&>"

_PATTERNS = (
    (AMPERSAND_REDIRECTION, r"&>"),
    ("|&", r"\|&"),
    ("{1..8}", r"\{-?\w+\.\.-?\w+(\.\.-?\d+)?\}"),
    ("{a,b}", r"(?<![$\w])[\w./-]*\{[\w./-]*(,[\w./-]*)+\}"),
    ("[[ ]]", r"(?:^|[\s;&|(!])\[\[(?=\s)"),
    ("(( ))", r"(?:^|[;&|]|\b(?:if|while|until|for|do|then)\s)\s*\(\("),
    ("<<<", r"<<<"),
    ("<( )", r"(?:^|[\s=])[<>]\("),
    ("$'...'", r"\$'"),
    ("arrays", r"(?:^|[\s;&|(])\w+\+?=\("),
    ("${x//a/b}", r"\$\{\w+(?:/|\^|,|:-?\d)"),
    ("$RANDOM", r"\$\{?(?:RANDOM|SECONDS|EPOCHREALTIME|EPOCHSECONDS|BASH\w*|PIPESTATUS)\b"),
    ("function", r"(?:^|[;&|])\s*function\s+\w"),
    ("source", r"(?:^|[;&|]|\b(?:do|then)\s)\s*source\s"),
    ("shopt", r"(?:^|[;&|])\s*shopt\s"),
)
_COMPILED = tuple((name, re.compile(pattern, re.MULTILINE)) for name, pattern in _PATTERNS)

_QUOTED = re.compile(
    r"""
      \\.                       # one escaped letter
    | (?<!\$)'[^']*'            # single quotes
    | "(?:[^"\\]|\\.)*"         # double quotes
    | (?:^|(?<=\s))\#[^\n]*     # a comment
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


def bashisms(command: str) -> tuple[str, ...]:
    """Name what plain shells do not understand, each once; empty if nothing was found."""
    bare = _QUOTED.sub(_blank, command)
    return tuple(name for name, pattern in _COMPILED if pattern.search(bare))


def _blank(quoted: re.Match[str]) -> str:
    """What stands for quoted text: variables are expanded in double quotes, so these stay."""
    text = quoted[0]
    if text.startswith('"'):
        return " ".join(['"', *re.findall(r"\$\{[^}]*\}|\$\w+", text), '"'])
    return "_"
