"""The form an answer must have: its JSON schema for the endpoint, and reading what came back.

Validation is ours, whatever the endpoint promises; a schema sent along only makes a fitting answer likely.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

T = TypeVar("T", bound="BaseModel")

_FENCED_JSON = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
_THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_MOST_STARTS = 256
_MOST_PROBLEMS = 8
_LONGEST_WHOLE = 40

# What the strict mode of chat completions does not know; pydantic checks it afterwards.
_NOT_STRICT = (
    "title",
    "default",
    "discriminator",
    "minLength",
    "maxLength",
    "uniqueItems",
    "minProperties",
    "maxProperties",
)


@dataclass(frozen=True)
class Read(Generic[T]):
    """What became of an answer: either a value, or what is wrong with it."""

    value: T | None
    wrong: str = ""


def strict_schema(model: type[BaseModel]) -> tuple[dict[str, Any], bool]:
    """Return the JSON schema of a pydantic model in the form strict endpoints take, and whether it is strict.

    Strict means: every property required, none besides them. A model with a free mapping has no such form.

    Detour: the converters of langchain-core and openai leave keywords in it that strict endpoints refuse, such as
    `default` and `minLength`, of which Planned alone has 25 (tests/unit/agents/llm/test_detours.py).
    """
    schema = model.model_json_schema()
    closed = not any("additionalProperties" in part and part["additionalProperties"] for part in _objects(schema))
    strict: dict[str, Any] = _strict(schema)
    return strict, closed


def _objects(part: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(part, Mapping):
        if part.get("type") == "object":
            yield part
        for value in part.values():
            yield from _objects(value)
    elif isinstance(part, list):
        for value in part:
            yield from _objects(value)


def _strict(part: Any) -> Any:
    """Return a part of a schema in its strict form."""
    if isinstance(part, list):
        return [_strict(value) for value in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:  # nothing may stand beside it
        return {"$ref": part["$ref"]}
    kept = {"anyOf" if key == "oneOf" else key: value for key, value in part.items() if key not in _NOT_STRICT}
    for named in ("properties", "$defs"):  # there the keys are names, not keywords
        if named in part:
            kept[named] = {name: _strict(value) for name, value in part[named].items()}
    for key in set(kept) - {"properties", "$defs", "enum", "const"}:
        kept[key] = _strict(kept[key])
    if "properties" in kept:
        kept |= {"required": list(kept["properties"]), "additionalProperties": False}
    return kept


def read_answer(text: str, model: type[T]) -> Read[T]:
    """Find and validate the JSON object in an answer, which should be all of it but often is not.

    Detour: langchain's JSON parsers complete an object that was cut, and half a plan would pass for a whole one
    (tests/unit/agents/llm/test_detours.py).
    """
    from pydantic import ValidationError

    wrong = ""
    for candidate in _candidates(text):
        try:
            return Read(model.model_validate_json(candidate))
        except ValidationError as error:
            value = _read_leniently(candidate, model)
            if value is not None:
                return Read(value)
            wrong = wrong or problems(error)
    return Read(None, wrong or "- all: there is no JSON object in it")


def _read_leniently(text: str, model: type[T]) -> T | None:
    """Read JSON that pydantic's parser refuses as a whole for one number or letter in it; None if it does not fit.

    The model decides what of it counts: half of a surrogate pair is no text, and what is too long is no number.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(json.loads(text, parse_int=_whole))
    except (ValueError, RecursionError, ValidationError):
        return None


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_WHOLE else float(digits)


def _candidates(text: str) -> Iterator[str]:
    """Yield what may be meant as the answer: all of it, a fenced block, an object inside prose; the last one first."""
    answer = _THOUGHTS.sub("", text)
    if answer.lstrip().startswith("{"):
        yield answer
    yield from (block.strip() for block in reversed(_FENCED_JSON.findall(answer)))
    yield from reversed(list(_objects_in(answer)))


def _objects_in(text: str) -> Iterator[str]:
    """Yield the outermost JSON objects of a text."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    for _attempt in range(_MOST_STARTS):
        if start < 0:
            return
        try:
            _value, end = decoder.raw_decode(text, start)
            yield text[start:end]
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)


def repair_request(wrong: str, model: type[BaseModel]) -> str:
    """Return the message to a model whose answer does not fit."""
    schema = json.dumps(strict_schema(model)[0], separators=(",", ":"))
    return (
        f"Your answer is not accepted:\n{wrong}\n"
        f"Answer again, with nothing but one JSON object that fits this schema:\n{schema}"
    )


def problems(error: ValidationError) -> str:
    """Return what did not validate, one line for each of the first few places."""
    places = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"- {'.'.join(str(part) for part in place['loc']) or 'all'}: {place['msg']}" for place in places]
    more = [f"- and {len(lines) - _MOST_PROBLEMS} more"] if len(lines) > _MOST_PROBLEMS else []
    return "\n".join(lines[:_MOST_PROBLEMS] + more)
