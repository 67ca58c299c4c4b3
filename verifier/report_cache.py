"""Cached reports of policies that passed, so that the same policy need not be proved twice.

Only passes are cached, and a cached report counts only if the token in it was signed by our own key over that very
report: whoever can write into the cache folder can make us forget, not make us believe. What failed is proved again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from schedagent.core.retention.folder import mark_used, trim
from schedagent.core.retention.limits import RETENTION
from schedagent.core.verification import VerificationReport

ENTRY = re.compile(r"[0-9a-f]{32}\.json")
"""Names of cached reports in their folder."""
log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[1]
_CODE = (
    *("verifier/**/*.py", "kernel_bpf/**/*.py", "schedagent/core/**/*.py"),
    *("kernel_bpf/bpf/include/*.h", "kernel_bpf/bpf/libc/**/*.h"),
)


@functools.cache
def verifier_version() -> str:
    """Return a digest of all that a report depends on besides the policy: the verifier's code, rules and headers."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _CODE for path in _ROOT.glob(pattern)):
        digest.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def digest_subject(parts: Sequence[Any]) -> str:
    """Return the digest of what a report depends on: `parts`, and the verifier itself."""
    return hashlib.sha256(json.dumps([*parts, verifier_version()]).encode()).hexdigest()[:32]


class ReportCache:
    """A folder with one file per policy that passed.

    Args:
        folder: where they lie.
        vouches: whether a token was signed by our own key over a report of this digest.
    """

    def __init__(self, folder: Path, vouches: Callable[[str, str], bool]) -> None:
        self._folder = folder
        self._vouches = vouches

    def recall(self, subject: str) -> VerificationReport | None:
        """Return the report of a policy that passed before; None if there is none that can be trusted.

        Args:
            subject: see core.verification.VerificationReport; a signed report of another subject is not believed.
        """
        path = self._path(subject)
        try:
            report = TypeAdapter(VerificationReport).validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("the cached report %s cannot be read: %s", path.name, error)
            return None
        if report.subject != subject:
            log.warning("the cached report %s is about another policy: proving this one again", path.name)
            return None
        if not report.passed:
            return None
        if not self._vouches(report.token, report.digest):
            log.warning("the cached report %s is not signed by our key: proving the policy again", path.name)
            return None
        mark_used(path)
        return report

    def store(self, report: VerificationReport) -> None:
        """Write a report beside its place and rename it; a full disk costs only the next run's time."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=self._folder) as folder:
                partial = Path(folder, "report")
                partial.write_bytes(TypeAdapter(VerificationReport).dump_json(report))
                partial.replace(self._path(report.subject))
            trim(self._folder, ENTRY, RETENTION["reports"])
        except OSError as error:
            log.warning("cannot cache the report: %s", error)

    def _path(self, subject: str) -> Path:
        return self._folder / f"{subject}.json"
