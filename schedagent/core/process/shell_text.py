"""Commands as a person can read them in a message and paste them into a shell."""

from __future__ import annotations


def quoted(text: str) -> str:
    r"""Return one word for a shell that is this text, always in quotes, so that it stands out in a sentence.

    >>> print(quoted("grep '\\d' a"))
    'grep '\''\d'\'' a'
    >>> print(quoted("printf '\a'"))
    $'printf \'\x07\''

    What is not printable is written as bash and zsh read it, and never reaches a terminal.
    """
    if text.isprintable():
        return "'" + text.replace("'", r"'\''") + "'"
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if letter == "\n":
        return r"\n"
    if letter.isprintable():
        return letter
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))
