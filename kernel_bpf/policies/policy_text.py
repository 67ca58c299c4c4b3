"""What a policy's source states about itself, for policies that nobody documented by hand: written by a model or
patched.

The conventions are those of the bundled policies, and simple enough for a prompt:

    struct sched_ext_ops NAME = { ... .name = "NAME" }      one in each source
    /* Effect of the tunable, in words. 500 to 100000. */   the range ends the comment before it
    const volatile u64 slice_us = 5000;                     its unit ends its name
    task_history, task_class (history.bpf.h, known_class.bpf.h)     maps that the loader fills
    Declares: weights                                       in a comment: oracles it does not mean to satisfy
    Reads: nice, random numbers                             in a comment: inputs it goes by (rule 32)

This is no check of the source, which is the verifier's business: what is misread here makes a policy that is described
badly, never one that is believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kernel_bpf.policies.compose import header_words
from kernel_bpf.policies.library import TUNABLE_TYPES, UNITS
from schedagent.core.errors import PolicyError
from schedagent.core.policies.policy import DECLARABLE, READABLE, Tunable
from schedagent.core.policies.spec import NAME, RESERVED_NAMES
from schedagent.core.terminal.printable import printable

_TOKEN = re.compile(
    r"""(?P<comment>/\*.*?(?:\*/|\Z)|//[^\n]*)
      | (?P<string>"(?:\\.|[^"\\\n])*")
      | '(?:\\.|[^'\\\n])*'
      | (?P<word>[A-Za-z_]\w*)
    """,
    re.DOTALL | re.VERBOSE | re.ASCII,
)
_OPS = re.compile(r"\bstruct\s+sched_ext_ops\s+([A-Za-z_]\w*)\s*=", re.ASCII)
_OPS_NAME = re.compile(r"(\.\s*name\s*=\s*)\"[^\"\n]*\"", re.ASCII)
_PIECE = re.compile(r"\w+|->|&&|[^\w\s]", re.ASCII)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
_TUNABLE = re.compile(r"\bconst\s+volatile\s+(?P<type>\w+)\s+(?P<name>[A-Za-z_]\w*)(?P<rest>[^;]*);", re.ASCII)
_DEFAULT = re.compile(r"\s*=\s*(?P<number>-?(?:0[xX][0-9a-fA-F]{1,16}|0|[1-9]\d{0,19})|true|false)[uUlL]*\s*", re.ASCII)
_RANGE = re.compile(r"(?<!\d)(-?\d{1,20})\s+to\s+(-?\d{1,20})\.?\s*\Z", re.ASCII)
_DECLARES = re.compile(r"\bDeclares:[ \t]*([a-z', \t]+)")
_READS = re.compile(r"\bReads:[ \t]*([a-z, \t]+)")
_INPUTS = {"history": ("history.bpf.h", "task_history"), "classes": ("known_class.bpf.h", "task_class")}
_HEADERS_READ = {
    "history.bpf.h": ("comm", "arguments", "runtime", "map values"),
    "known_class.bpf.h": ("comm", "arguments", "map values"),
    "identity.bpf.h": ("comm", "arguments", "map values"),
    "cgroup_name.bpf.h": ("cgroup",),
}
"""What the primitives of a header of ours go by, whoever uses them."""

_EFFECT_LENGTH = 300


# --- the name


def with_name(source: str, name: str) -> str:
    """Return the source whose policy is called `name`: its ops struct, and the name that the kernel shows.

    Callbacks keep their names, so that a patch changes little more than it means to.

    Raises:
        PolicyError: a policy cannot be called so, or the source defines no ops struct, several, or one without a name.
    """
    check_name(name)
    code = _code(source)
    defined = set(_OPS.findall(code))
    if len(defined) != 1:
        what = f"{len(defined)} structs: {', '.join(sorted(defined))}" if defined else "no struct"
        raise PolicyError(
            f"the source defines {what} sched_ext_ops",
            f"define one, by itself and without a macro: struct sched_ext_ops {name} = {{ ... }};",
        )
    [old] = defined
    if old != name and _is_taken(source, name):
        raise PolicyError(f"the source uses the word {name} already, so its policy cannot be called so")
    renamed = _renamed(source, old, name) if old != name else source
    start = _OPS.search(_code(renamed))
    assert start is not None, "it was found before it was renamed"
    head, tail = renamed[: start.end()], renamed[start.end() :]
    shown = _OPS_NAME.search(_code(tail, strings=True))
    if shown is None:
        raise PolicyError("the ops struct has no name", f'give it one: .name = "{name}",')
    return f'{head}{tail[: shown.start()]}{shown[1]}"{name}"{tail[shown.end() :]}'


def check_name(name: str) -> None:
    """Raise PolicyError unless a new policy may be called so: the kernel shows at most 15 bytes of a map's name."""
    if not NAME.fullmatch(name):
        raise PolicyError(
            f"{name[:100]!r} cannot be the name of a policy",
            "1 to 15 of a-z, 0-9 and _, beginning with a letter",
        )
    if name in RESERVED_NAMES or name.endswith("_t") or name in header_words():
        raise PolicyError(f"{name!r} cannot be the name of a policy: the word means something else", "choose another")


@dataclass(frozen=True)
class _Piece:
    """A word or a mark of C, and where it begins in the source."""

    text: str
    start: int


def _renamed(source: str, old: str, new: str) -> str:
    """Return the source in which the ops struct has another name, wherever it is declared or used.

    A member, a parameter or a variable of a function may be called like the ops struct, and hides it there. So each
    outermost declaration is taken as a whole: either every such word in it, members aside, stands where only the ops
    struct can be (its address, its size, one of its members), or none of them means it.
    """
    places: list[int] = []
    for declaration in _declarations(_pieces(_code(source))):
        words = [number for number in range(len(declaration)) if _is_name(declaration, number, old)]
        own = [number for number in words if _before(declaration, number, 2) == ("struct", "sched_ext_ops")]
        others = [number for number in words if number not in own]
        uses = others if all(_is_use(declaration, number) for number in others) else []
        places += [declaration[number].start for number in (*own, *uses)]
    end, parts = 0, []
    for place in sorted(places):
        parts += [source[end:place], new]
        end = place + len(old)
    return "".join([*parts, source[end:]])


def _pieces(code: str) -> list[_Piece]:
    return [_Piece(match[0], match.start()) for match in _PIECE.finditer(code)]


def _declarations(pieces: Sequence[_Piece]) -> Iterator[Sequence[_Piece]]:
    """Yield each outermost declaration, a function with its body being one."""
    start = depth = 0
    is_function = False
    for number, piece in enumerate(pieces):
        if piece.text == "{":
            is_function = _before(pieces, number, 1) == (")",) if depth == 0 else is_function
            depth += 1
        elif piece.text == "}":
            depth = max(0, depth - 1)
        if depth == 0 and (piece.text == ";" or (piece.text == "}" and is_function)):
            yield pieces[start : number + 1]
            start = number + 1
    yield pieces[start:]


def _before(pieces: Sequence[_Piece], number: int, count: int) -> tuple[str, ...]:
    return tuple(piece.text for piece in pieces[max(0, number - count) : number])


def _is_name(pieces: Sequence[_Piece], number: int, name: str) -> bool:
    """Whether a name stands here that is no member's."""
    return pieces[number].text == name and _before(pieces, number, 1) not in ((".",), ("->",))


def _is_use(pieces: Sequence[_Piece], number: int) -> bool:
    """Whether a name stands where it can be the ops struct: &name, name.member, sizeof(name)."""
    is_address = _before(pieces, number, 1) == ("&",)
    is_measured = _before(pieces, number, 2) in (("sizeof", "("), ("typeof", "("), ("__typeof__", "("))
    has_member = [piece.text for piece in pieces[number + 1 : number + 2]] == ["."]
    return is_address or is_measured or has_member


def _is_taken(source: str, name: str) -> bool:
    """Whether something of the whole file is called so: no member, no parameter, nothing declared inside a function.

    What comes first between parentheses may be the name of a function: BPF_PROG(name, ...).
    """
    code = _code(source)
    outer = [piece for line in _DIRECTIVE.findall(code) for piece in _pieces(line)]
    depth = hidden = parentheses = 0
    head: list[str] = [""]
    for piece in _pieces(_DIRECTIVE.sub("", code)):
        if piece.text == "{":
            depth += 1
            hidden = hidden or ("enum" not in head and depth)
        elif piece.text == "}":
            hidden = 0 if hidden == depth else hidden
            depth = max(0, depth - 1)
        elif not hidden and (parentheses == 0 or head[-1] == "("):
            outer.append(piece)
        parentheses = max(0, parentheses + (piece.text == "(") - (piece.text == ")"))
        head = [""] if piece.text in ("{", "}", ";") else [*head[-3:], piece.text]
    return any(_is_name(outer, number, name) for number in range(len(outer)))


def _code(source: str, *, strings: bool = False) -> str:
    """Return the source with comments, and literals unless strings are wanted, blanked: every place stays the same."""
    return _TOKEN.sub(
        lambda match: match[0] if match["word"] or (strings and match["string"]) else re.sub(r"[^\n]", " ", match[0]),
        source,
    )


# --- tunables, inputs, declarations


def tunables(source: str, known: Mapping[str, Tunable]) -> tuple[Tunable, ...]:
    """Return the tunables of a source, in its order.

    Args:
        known: documented before, by name: their range, unit and effect stay, their default is the source's.

    Raises:
        PolicyError: a tunable's type or default cannot be read, or nothing gives its range.
    """
    described: dict[str, Tunable] = {}
    comment, end = "", 0
    for match in _TUNABLE.finditer(_code(source)):
        before = source[end : match.start()].rstrip()
        if before or not described:  # one comment may stand for several that follow each other
            comment = before[before.rfind("/*") :] if before.endswith("*/") else ""
        end = match.end()
        name = match["name"]
        if not name.startswith("__"):  # by the convention of the scx headers the loader sets these
            described[name] = _tunable(match, comment, known.get(name))
    return tuple(described.values())


def _tunable(match: re.Match[str], comment: str, known: Tunable | None) -> Tunable:
    name, kind = match["name"], match["type"]
    written = _DEFAULT.fullmatch(match["rest"])
    if kind not in TUNABLE_TYPES or not written:
        raise PolicyError(
            f"the tunable {name} cannot be read: {' '.join(match[0].split())[:120]}",
            f"write it as const volatile TYPE NAME = NUMBER; with a TYPE of {', '.join(TUNABLE_TYPES)}",
        )
    number = written["number"]
    default = int(number == "true") if number in ("true", "false") else int(number, 16 if "x" in number.lower() else 10)
    tunable = replace(known, type=kind, default=default) if known else _described(name, kind, default, comment)
    if not tunable.minimum <= default <= tunable.maximum:
        raise PolicyError(
            f"the tunable {name} = {default} is not between {tunable.minimum} and {tunable.maximum}",
            "give it a default within its range",
        )
    return tunable


def _described(name: str, kind: str, default: int, comment: str) -> Tunable:
    """A tunable as the comment before it describes it."""
    words = " ".join(re.sub(r"^\s*\*", " ", comment[2:-2], flags=re.MULTILINE).split())
    accepted = _RANGE.search(words)
    if kind != "bool" and not accepted:
        raise PolicyError(
            f"no comment gives the range of the tunable {name}",
            "end the comment right before it with its range, for example: "
            f"/* What raising it does. {min(default, 1)} to {max(default * 10, 10)}. */",
        )
    minimum, maximum = (int(accepted[1]), int(accepted[2])) if accepted else (0, 1)
    effect = printable(words[: accepted.start()].strip() if accepted else words)
    unit = name.rpartition("_")[2]
    unit = unit if unit in UNITS else "none"
    return Tunable(name, kind, unit, minimum, maximum, default, effect[:_EFFECT_LENGTH] or "not said")


def inputs(source: str) -> tuple[str, ...]:
    """Return the maps that the loader fills: "history" and "classes"."""
    code = _code(source, strings=True)
    return tuple(name for name, marks in _INPUTS.items() if any(re.search(rf"\b{mark}\b", code) for mark in marks))


def declares(source: str) -> tuple[str, ...]:
    """Return the oracles that the policy declares it does not mean to satisfy.

    Raises:
        PolicyError: one of them cannot be declared away.
    """
    words = _listed(source, _DECLARES)
    wrong = [word for word in words if word not in DECLARABLE]
    if wrong:
        raise PolicyError(
            f"the source declares {wrong[0]!r}, which is nothing that a policy may leave out",
            f"accepted: {', '.join(DECLARABLE)}",
        )
    return tuple(word for word in DECLARABLE if word in words)


def reads(source: str) -> tuple[str, ...]:
    """Return the inputs that the policy declares to go by: in a comment, or by the headers of ours that it includes.

    Other words after "Reads:" are prose: what is not declared, the verifier finds.
    """
    code = _code(source, strings=True)
    included = [names for header, names in _HEADERS_READ.items() if re.search(rf"\b{re.escape(header)}", code)]
    words = {*_listed(source, _READS), *(name for names in included for name in names)}
    return tuple(word for word in READABLE if word in words)


def _listed(source: str, pattern: re.Pattern[str]) -> list[str]:
    """What the comments list behind a word, separated by commas."""
    comments = "\n".join(match["comment"] for match in _TOKEN.finditer(source) if match["comment"])
    return [" ".join(word.split()) for listed in pattern.findall(comments) for word in listed.split(",")]
