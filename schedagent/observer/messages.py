"""What goes over the observer's socket: one JSON line each way.

An untrusted edge: exactly these fields and types, and nothing is converted.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schedagent.core import accept
from schedagent.core.errors import UsageError
from schedagent.observing.measure import LONGEST_S, SHORTEST_S, Order
from schedagent.observing.scope import Target

LONGEST_REQUEST = 8192
"""Bytes; the path of a cgroup may be 4000 characters long."""


class ObserveRequest(BaseModel):
    """Watch with tier 2.

    Args:
        version: of this form.
        pid, cgroup: of a process tree, or of a cgroup; without both the machine.
        seconds: for how long.
        tracing: send single switches, too.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    version: Literal[1]
    verb: Literal["observe"]
    pid: Annotated[int, Field(ge=0, le=1 << 22)] = 0
    cgroup: Annotated[str, Field(max_length=accept.LONGEST_CGROUP)] = ""
    seconds: Annotated[float, Field(ge=SHORTEST_S, le=LONGEST_S, allow_inf_nan=False)]
    tracing: bool = False

    @model_validator(mode="after")
    def _one_scope(self) -> ObserveRequest:
        if self.pid and self.cgroup:
            raise ValueError("of pid and cgroup one at most")
        if self.cgroup and not accept.is_cgroup(self.cgroup):
            raise ValueError("cgroup is no path of a cgroup")
        return self

    def order(self) -> Order:
        """Return what it asks for."""
        return Order(Target(self.pid, self.cgroup), self.seconds, tier=2, tracing=self.tracing)


def read_request(line: bytes) -> ObserveRequest:
    """Read a request; raise UsageError with what is wrong, without repeating its content."""
    try:
        return ObserveRequest.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "request"
        raise UsageError(f"{place[:100]}: {first['msg']}", "client and observer must be of one version") from None
