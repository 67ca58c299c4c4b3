"""What schedagentd wants of a policy that `schedagent verify` proved: the object, and what its report vouches for."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from schedagent.core.deployment import LARGEST_OBJECT_BYTES
from schedagent.core.errors import UsageError
from schedagent.core.token import decode


def deployment_fields(file: Path, report: Path) -> dict[str, Any]:
    """Put together what schedagentd wants of a policy: the object, and what its report shows was verified.

    Raises:
        UsageError: a file cannot be read, or the two do not belong together.
    """
    fields = report_fields(report)
    verified_digest = fields.pop("artifact_digest")
    content = _read_object(file)
    digest = hashlib.sha256(content).hexdigest()
    if digest != verified_digest:
        raise UsageError(
            f"{report} is about another object ({verified_digest[:12]}) than {file} ({digest[:12]})",
            f"schedagent verify --json {file} > {report}",
        )
    return {**fields, "object_base64": base64.b64encode(content).decode()}


def newer_token(report: Path) -> dict[str, str]:
    """Return what a renewal needs of a newer report; raise UsageError if it cannot be read."""
    fields = report_fields(report)
    return {name: fields[name] for name in ("token", "report_digest")}


def report_fields(report: Path) -> dict[str, Any]:
    """Return what a deployment needs of a report; the signed tunables are in its token.

    Raises:
        UsageError: the file cannot be read, or is no report.
    """
    try:
        values = json.loads(report.read_text(encoding="utf-8"))
        token = decode(values["token"])
        policy = values["policy"]
    except OSError as error:
        raise UsageError(f"{report} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{report} is not a report", "schedagent verify --json FILE.bpf.c > REPORT") from None
    return {
        "policy": policy,
        "tunables": dict(token.tunables),
        "report_digest": token.report_digest,
        "token": values["token"],
        "artifact_digest": token.artifact_digest,
    }


def _read_object(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST_OBJECT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_OBJECT_BYTES:
        raise UsageError(f"{file} is larger than {LARGEST_OBJECT_BYTES} bytes")
    return content
