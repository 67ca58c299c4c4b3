"""What each of the four agents may answer: one pydantic model for each question.

These are the untrusted edge: what comes back is a model's. Texts become one short line of printable characters here,
so that nothing in them can steer a terminal or flood a report. Whether a proposal can be made, and whether evidence was
measured, is decided behind this edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from agents.llm.answers import problems
from schedagent.core.policies.proposal import Origin, Proposal
from schedagent.core.policies.spec_reader import spec_schema

LONGEST_LINE = 600
"""Characters of a sentence that are kept."""

MOST_PROPOSALS = 8
MOST_INSIGHTS = 4


def one_line(text: str) -> str:
    """Return a text as one line of printable characters, cut to what is kept."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(printable.split())
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 4]} ..."


def _optional_as_null(schema: Any) -> Any:
    """Return a JSON schema in which what may be left out may be null: strict endpoints demand every field."""
    if isinstance(schema, list):
        return [_optional_as_null(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    nullable = {key: _optional_as_null(value) for key, value in schema.items()}
    if "properties" in nullable:
        required = schema.get("required", ())
        nullable["properties"] = {
            name: part if name in required else _or_null(part) for name, part in nullable["properties"].items()
        }
    return nullable


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that also accepts null, in the fewest words."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if schema.get("type") in ("integer", "boolean", "string"):
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


Line = Annotated[str, AfterValidator(one_line)]
"""A sentence or two."""

SpecTable = Annotated[
    dict[str, Any] | None, WithJsonSchema({"anyOf": [_optional_as_null(spec_schema()), {"type": "null"}]})
]
"""A policy spec as core.spec_reader reads it, which also reports what is wrong with it."""


class Described(BaseModel):
    """Observation: what the numbers mean."""

    meaning: Line = Field(description="what kind of work this is and where scheduling costs it time, in words")
    goal: Line = Field(description="what a scheduler should do for it, one sentence")


class TunableValue(BaseModel):
    """One tunable."""

    name: str
    value: int


class Proposed(BaseModel):
    """One candidate."""

    origin: Literal["configure", "compose", "patch", "generate"]
    policy: str = Field(description="configure, patch: name in the library; compose, generate: name of the new policy")
    tunables: list[TunableValue] = Field(default_factory=list, description="only those that differ from the default")
    spec: SpecTable = Field(default=None, description="compose: the spec; else null")
    diff: str = Field(default="", description="patch: unified diff against the stored source; else empty")
    source: str = Field(default="", description="generate: all of the BPF C; else empty")
    description: Line = Field(default="", description="new policies: what it does")
    reason: Line = Field(description="which evidence speaks for it")
    expected: Line = Field(description="the effect you expect, and on what")
    refuted_by: Line = Field(description="which measurement would show that you are wrong")

    def proposal(self) -> Proposal:
        """Return what is asked for, as the policy builder takes it."""
        return Proposal(
            origin=Origin(self.origin),
            policy=self.policy,
            tunables={tunable.name: tunable.value for tunable in self.tunables},
            spec=self.spec,
            diff=self.diff,
            source=self.source,
            description=self.description,
            reason=self.reason,
            expected=self.expected,
            refuted_by=self.refuted_by,
        )


def _salvage(answer: object, part: str, item: type[BaseModel], most: int) -> tuple[object, dict[int, str]]:
    """Return an answer without the items of a list that cannot be read, and what is wrong with each, counted from 1.

    One bad number is no reason to throw away what stands beside it. An answer without such a list, or with one that is
    too long, stays as it is.
    """
    items = answer.get(part) if isinstance(answer, Mapping) else None
    if not isinstance(answer, Mapping) or not isinstance(items, list) or len(items) > most:
        return answer, {}
    readable, wrong = [], {}
    for number, each in enumerate(items, 1):
        try:
            readable.append(item.model_validate(each))
        except ValidationError as error:
            wrong[number] = problems(error)
    return {**answer, part: readable}, wrong


class Planned(BaseModel):
    """Planning: what to try next."""

    reason: Line = Field(description="why these candidates, or why none can help")
    proposals: list[Proposed] = Field(max_length=MOST_PROPOSALS, description="most promising first; none if none helps")
    _unreadable: dict[int, str] = PrivateAttr(default_factory=dict)

    @property
    def unreadable(self) -> Mapping[int, str]:
        """What is wrong with the proposals that are left out, by their place in the answer, from 1."""
        return self._unreadable

    @model_validator(mode="wrap")
    @classmethod
    def _salvaged(cls, answer: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        readable, wrong = _salvage(answer, "proposals", Proposed, MOST_PROPOSALS)
        planned = handler(readable)
        planned._unreadable |= wrong
        return planned


class Decided(BaseModel):
    """Execution: what to do about a policy that a gate rejected, or that failed in its trial or was lost there."""

    decision: Literal["repair", "retry", "proceed", "abandon"] = Field(
        description="repair: try it changed; retry: once more as it is, if its machine was lost; proceed: the "
        "result stands; abandon: it is not worth another try"
    )
    reason: Line = Field(description="what was wrong, and what the repair changes; or why there is none")


class DecidedOnSpec(Decided):
    """The same for a composed policy."""

    spec: SpecTable = Field(default=None, description="repair: the whole spec as it should be; else null")


class DecidedOnSource(Decided):
    """The same for a policy in C: a diff is enough for a small change."""

    diff: str = Field(default="", description="repair: unified diff against the source shown; else empty")
    source: str = Field(default="", description="repair: the whole new source instead of a diff; else empty")


class Claimed(BaseModel):
    """One comparison that trials show."""

    arm: str = Field(max_length=64, description="key of a candidate, or default")
    relation: Literal["better", "worse", "same"]
    than: str = Field(max_length=64, description="key of another, or default")
    metric: str = Field(max_length=200, description="one of the metrics listed")


class Concluded(BaseModel):
    """One insight."""

    text: Line = Field(description="one or two sentences, without numbers")
    claims: list[Claimed] = Field(min_length=1, max_length=4, description="what the samples show, checked against them")


class Reflected(BaseModel):
    """Learning: what the trials of this iteration teach."""

    insights: list[Concluded] = Field(max_length=MOST_INSIGHTS, description="none if the trials show nothing new")
    _unreadable: dict[int, str] = PrivateAttr(default_factory=dict)

    @property
    def unreadable(self) -> Mapping[int, str]:
        """What is wrong with the insights that are left out, by their place in the answer, from 1."""
        return self._unreadable

    @model_validator(mode="wrap")
    @classmethod
    def _salvaged(cls, answer: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        readable, wrong = _salvage(answer, "insights", Concluded, MOST_INSIGHTS)
        reflected = handler(readable)
        reflected._unreadable |= wrong
        return reflected
