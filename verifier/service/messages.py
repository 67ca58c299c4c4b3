"""What goes over the verifier's socket: JSON lines, one request, then answers until the last one.

This is an untrusted edge on both sides: nothing is taken over that these models do not know, and no type is converted.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from schedagent.core import accept, errors
from schedagent.core.deployment import MOST_ENTRIES
from schedagent.core.errors import SchedagentError, SetupError, UsageError
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import DECLARABLE, READABLE, Tunable
from schedagent.core.policies.rodata import read_rodata
from schedagent.core.token import Scope
from schedagent.core.verification import GateResult, VerificationReport

MOST_HEADERS = 256
_HEADER_PART = "[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,99}"
HEADER_PATH = re.compile(rf"{_HEADER_PART}(/{_HEADER_PART}){{0,7}}")
"""A relative path whose parts do not begin with a dot."""

_SHOWN_MISTAKES = 3

MOST_PARTS = 64
PartName = Annotated[str, Field(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}\.c\z")]
U64 = Annotated[int, Field(ge=0, lt=1 << 64)]
Number = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
Entries = Annotated[tuple[tuple[U64, U64], ...], Field(max_length=MOST_ENTRIES)]


class Message(BaseModel):
    """Base of all messages: exact types, and no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def line(self) -> bytes:
        """The message as it is sent."""
        return self.model_dump_json().encode() + b"\n"


class VerifyRequest(Message):
    """One policy to verify.

    Args:
        version: of this form.
        action: verify takes it through all gates; compile only makes the object.
        policy: its name.
        source, object_base64: C source, or a compiled object; one of them.
        headers: what the source includes, text by relative path; no file of the verifier's machine is ever opened.
        parts: file names and texts of further sources that are linked with it.
        rodata: what its loader would set, as in a file of core.policies.rodata.
        documented: the tunables with their ranges.
        inputs: maps the loader fills: history, classes.
        declares: oracles that it does not mean to satisfy, see core.policy.PolicyInfo.
        reads: inputs that it declares to go by, of core.policies.policy.READABLE.
        tunables: chosen values; those left out have their documented default.
        history, classes: contents of those maps.
        kernel: release to verify for; empty for the verifier's default.
        scope, cgroup: what the token is to allow, see core.token.DeploymentToken.
    """

    version: Literal[1]
    action: Literal["verify", "compile"] = "verify"
    policy: Annotated[str, Field(pattern=r"\A[A-Za-z0-9_]{1,100}\z")]
    source: str | None = None
    object_base64: str | None = None
    headers: Annotated[dict[str, str], Field(max_length=MOST_HEADERS)] = {}
    parts: Annotated[tuple[tuple[PartName, str], ...], Field(max_length=MOST_PARTS)] = ()
    rodata: dict[str, Any] = {}
    documented: Annotated[tuple[Tunable, ...], Field(max_length=256)] = ()
    inputs: Annotated[tuple[Literal["history", "classes"], ...], Field(max_length=2)] = ()
    declares: Annotated[tuple[str, ...], Field(max_length=len(DECLARABLE))] = ()
    reads: Annotated[tuple[str, ...], Field(max_length=len(READABLE))] = ()
    tunables: Annotated[dict[str, Number], Field(max_length=256)] = {}
    history: Entries = ()
    classes: Entries = ()
    kernel: Annotated[str, Field(pattern=r"\A([0-9][0-9A-Za-z.+~_-]{0,63})?\z")] = ""
    scope: Scope = Scope.FULL
    cgroup: Annotated[str, AfterValidator(accept.or_empty(accept.cgroup))] = ""

    @model_validator(mode="after")
    def _coherent(self) -> VerifyRequest:
        if (self.source is None) == (self.object_base64 is None):
            raise ValueError("one of source and object_base64 must be there, and not both")
        paths = set(self.headers)
        for path in paths:
            if not HEADER_PATH.fullmatch(path):
                raise ValueError(
                    f"{path[:200]!r} cannot be the path of a header: relative, and no part starts with a dot"
                )
            folders = {path[: match.start()] for match in re.finditer("/", path)}
            if folders & paths or path in self.places:
                raise ValueError(f"header {path[:200]!r} would lie where another file lies")
        if not set(self.declares) <= set(DECLARABLE):
            raise ValueError(f"declares may hold {', '.join(DECLARABLE)}")
        if not set(self.reads) <= set(READABLE):
            raise ValueError(f"reads may hold {', '.join(READABLE)}")
        if self.object_base64 is not None:
            _bytes(self.object_base64)
            if self.parts:
                raise ValueError("an object is linked already: parts are for a source")
        try:
            read_rodata(self.rodata, "rodata")
        except UsageError as error:
            raise ValueError(error.message) from None
        return self

    @property
    def places(self) -> tuple[str, str]:
        """File names of the policy itself, as source and as object, beside which the headers lie."""
        return f"{self.policy}.bpf.c", f"{self.policy}.bpf.o"

    @property
    def object_bytes(self) -> bytes | None:
        """The compiled object, if that was sent."""
        return None if self.object_base64 is None else _bytes(self.object_base64)


class Object(Message):
    """A core.artifact.PolicyArtifact."""

    name: str
    object_base64: str
    source_digest: str
    btf_build_id: str
    log: str

    @classmethod
    def of(cls, artifact: PolicyArtifact) -> Object:
        """The message that carries `artifact`."""
        return cls(
            name=artifact.name,
            object_base64=base64.b64encode(artifact.object_bytes).decode(),
            source_digest=artifact.source_digest,
            btf_build_id=artifact.btf_build_id,
            log=artifact.log,
        )

    @property
    def artifact(self) -> PolicyArtifact:
        """What it carries; raise ValueError if that is not base64."""
        return PolicyArtifact(self.name, _bytes(self.object_base64), self.source_digest, self.btf_build_id, self.log)


class GateAnswer(Message):
    """A gate ended; more follows."""

    gate: GateResult


class WaitAnswer(Message):
    """The worker waits for the lab; more follows.

    Args:
        waiting: for whom the lab measures; empty at the end.
        seconds: at the end, how long it took; else 0.
    """

    waiting: Annotated[str, Field(max_length=1000)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class FinalAnswer(Message):
    """The last answer: the report (none if only compiled) and the object (none if it did not compile)."""

    report: VerificationReport | None
    object: Object | None


class Fault(Message):
    """An error of core.errors."""

    kind: str
    message: str
    hint: str


class FaultAnswer(Message):
    """The last answer, if there is no other: what went wrong; about the policy only if its kind is."""

    fault: Fault

    @classmethod
    def of(cls, error: SchedagentError) -> FaultAnswer:
        """The message that carries `error`."""
        return cls(fault=Fault(kind=type(error).__name__, message=error.message, hint=error.hint))

    @property
    def error(self) -> SchedagentError:
        """The error, to be raised here as it was there."""
        kind = getattr(errors, self.fault.kind, None)
        known = isinstance(kind, type) and issubclass(kind, SchedagentError)
        chosen: type[SchedagentError] = kind if known and isinstance(kind, type) else SetupError
        return chosen(self.fault.message, hint=self.fault.hint)


Answer = GateAnswer | WaitAnswer | FinalAnswer | FaultAnswer
_ANSWER: TypeAdapter[Any] = TypeAdapter(Answer)


def read_request(line: bytes) -> VerifyRequest:
    """Read a request; raise UsageError that names the field that is wrong."""
    try:
        return VerifyRequest.model_validate_json(line)
    except ValidationError as error:
        raise UsageError(
            f"the request cannot be used: {_mistakes(error)}", "see verifier/service/messages.py: VerifyRequest"
        ) from None


def read_answer(line: bytes) -> Answer:
    """Read an answer; raise SetupError if it is none."""
    try:
        answer: Answer = _ANSWER.validate_json(line)
    except ValidationError as error:
        raise SetupError(
            f"the verifier service gave an answer that cannot be used: {_mistakes(error)}",
            "service and client must be of one version",
        ) from None
    return answer


def _mistakes(error: ValidationError) -> str:
    """The first mistakes, without the values: they may be large, or a secret in the wrong place."""
    mistakes = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [
        f"{'.'.join(map(str, mistake['loc'])) or 'it'}: {mistake['msg']}"[:300]
        for mistake in mistakes[:_SHOWN_MISTAKES]
    ]
    more = f"; and {len(mistakes) - _SHOWN_MISTAKES} more" if len(mistakes) > _SHOWN_MISTAKES else ""
    return "; ".join(shown) + more


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64: {error}") from None
