"""The verifier service as agents use it: the same calls as of verifier.pipeline. Verifier, answered over its socket.

What a source includes is found here and sent along as text, since the service opens no file that a request names.
"""

from __future__ import annotations

import base64
import posixpath
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from schedagent.core.errors import SetupError, TokenError, UsageError
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.embedded import scheduler_inside
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.process.machine_lock import LAB_LOCK
from schedagent.core.token import Scope, check, decode, digest_inputs
from schedagent.core.verification import GateResult, VerificationReport, Verified
from verifier.service.messages import MOST_HEADERS, FaultAnswer, FinalAnswer, GateAnswer, VerifyRequest, read_answer

ANSWER_TIMEOUT_S = 1860.0
"""A little longer than the service gives a request."""

_LONGEST_ANSWER = 96 << 20
_LONGEST_HEADER = 4 << 20
_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*(["<])([^">\n]+)[">]', re.MULTILINE)


@dataclass(frozen=True)
class RemoteVerifier:
    """Asks the verifier service.

    Args:
        socket_path: where it listens.
        include_dirs: folders with headers of sources from elsewhere.
        on_gate: called with each gate's result as it comes.
        kernel: release to verify for; empty for the service's default.
        scope, cgroup: what tokens are to allow, see core.token.DeploymentToken.
        trusted: public keys in PEM; if there are any, one of them must have signed what passed every gate.
    """

    socket_path: Path
    include_dirs: tuple[Path, ...] = ()
    on_gate: Callable[[GateResult], None] = field(default=lambda _result: None)
    kernel: str = ""
    scope: Scope = Scope.FULL
    cgroup: str = ""
    trusted: tuple[bytes, ...] = ()

    def verify(self, candidate: CandidatePolicy, info: PolicyInfo) -> Verified:
        """Have a candidate taken through all gates.

        Raises:
            SetupError: the service is not there, is busy, or gave an answer that contradicts itself.
            TokenError: it passed every gate, but no trusted key signed that.
            SchedagentError: what the service reported, by its own type.
        """
        answer = self._ask(self._request("verify", candidate, info))
        if answer.report is None:
            raise _wrong("it holds no report")
        artifact = answer.object.artifact if answer.object else None
        _check(answer.report, candidate, artifact, self)
        if self.trusted and answer.report.passed and not answer.report.needs and artifact is not None:
            self._check_signature(answer.report, candidate, artifact)
        return Verified(replace(answer.report, verified_by=f"the service at {self.socket_path}"), artifact)

    def verify_all(self, submissions: Sequence[tuple[CandidatePolicy, PolicyInfo]]) -> Iterator[Verified]:
        """Have several taken through the gates, each when the caller asks for its result."""
        for candidate, info in submissions:
            yield self.verify(candidate, info)

    def compile(self, info: PolicyInfo) -> PolicyArtifact:
        """Have a policy compiled; raise CompileError with clang's own lines."""
        answer = self._ask(self._request("compile", CandidatePolicy(info.name), info))
        if answer.object is None:
            raise _wrong("it holds no object")
        return answer.object.artifact

    def _check_signature(
        self, report: VerificationReport, candidate: CandidatePolicy, artifact: PolicyArtifact
    ) -> None:
        check(
            report.token,
            self.trusted,
            artifact_digest=artifact.digest,
            tunables=candidate.tunables,
            inputs_digest=digest_inputs(candidate.history, candidate.classes),
            report_digest=report.digest,
            kernel_release=report.kernel_release,
            btf_build_id=artifact.btf_build_id,
            live_patches=(),
            scope=self.scope,
            cgroup=self.cgroup,
            now=time.time(),
        )

    def _request(self, action: str, candidate: CandidatePolicy, info: PolicyInfo) -> VerifyRequest:
        try:
            content = _content(info.source)
            headers = {} if info.is_object else self._headers((info.source, *info.parts))
            return VerifyRequest.model_validate(
                {
                    "version": 1,
                    "action": action,
                    "policy": info.name,
                    "source": None if info.is_object else content.decode(),
                    "object_base64": base64.b64encode(content).decode() if info.is_object else None,
                    "headers": headers,
                    "parts": tuple((path.name, path.read_bytes().decode()) for path in info.parts),
                    "rodata": info.rodata.table,
                    "documented": info.tunables,
                    "inputs": info.inputs,
                    "declares": info.declares,
                    "reads": info.reads,
                    "tunables": dict(candidate.tunables),
                    "history": candidate.history,
                    "classes": candidate.classes,
                    "kernel": self.kernel,
                    "scope": self.scope,
                    "cgroup": self.cgroup,
                }
            )
        except OSError as error:
            raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise UsageError(f"policy {info.name} cannot be sent to the verifier service: {error}") from None

    def _headers(self, sources: Sequence[Path]) -> dict[str, str]:
        """Return what the sources include; raise UsageError if two mean different headers by one path."""
        headers: dict[str, str] = {}
        for source in sources:
            for path, text in collect_headers(source, self.include_dirs).items():
                if headers.setdefault(path, text) != text:
                    raise UsageError(f"{source} includes another {path} than a source that it is linked with")
        return headers

    def _ask(self, request: VerifyRequest) -> FinalAnswer:
        """Send a request and return the last answer, reporting gates and waits on the way."""
        with self._connect() as connection, connection.makefile("rb") as answers:
            with suppress(ConnectionError):  # it may refuse us before it has read all: its answer then gives the reason
                connection.sendall(request.line())
            while not isinstance(answer := read_answer(self._line(answers)), FinalAnswer | FaultAnswer):
                if isinstance(answer, GateAnswer):
                    self.on_gate(answer.gate)
                else:
                    LAB_LOCK.note_wait(answer.waiting, answer.seconds)
        if isinstance(answer, FaultAnswer):
            raise answer.error
        return answer

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(ANSWER_TIMEOUT_S)
            connection.connect(str(self.socket_path))
        except OSError as error:
            connection.close()
            raise self._unusable(error.strerror or str(error)) from None
        return connection

    def _line(self, answers: BinaryIO) -> bytes:
        """The next line of the answer."""
        try:
            line = answers.readline(_LONGEST_ANSWER)
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from None
        if not line.endswith(b"\n"):
            raise self._unusable(f"its answer ended early, after {len(line)} bytes")
        return line

    def _unusable(self, why: str) -> SetupError:
        return SetupError(
            f"the verifier service at {self.socket_path} cannot be used: {why}",
            "start it: schedagent verifier serve; or verify in this process: unset SCHEDAGENT_VERIFIER_SOCKET",
        )


def _content(source: Path) -> bytes:
    """Return a source or an object; of a program the object in it."""
    return source.read_bytes() if source.suffix in (".c", ".o") else scheduler_inside(source).content


def collect_headers(source: Path, include_dirs: tuple[Path, ...]) -> dict[str, str]:
    """Return the text of all that a source includes from beside it and from `include_dirs`, by relative path.

    Includes that are found in neither are the verifier's own headers, or the compiler will say what is missing.

    Raises:
        UsageError: there are too many.
    """
    roots = (source.parent, *include_dirs)
    headers: dict[str, str] = {}
    waiting = [("", source.read_bytes())]
    while waiting:
        includer, text = waiting.pop()
        for quote, name in _INCLUDE.findall(text):
            beside = (
                [posixpath.join(posixpath.dirname(includer), name.decode(errors="replace"))] if quote == b'"' else []
            )
            for path in map(posixpath.normpath, [*beside, name.decode(errors="replace")]):
                content = None if path in headers or path.startswith(("/", "..")) else _header(roots, path)
                if content is not None:
                    headers[path] = content.decode(errors="replace")
                    waiting.append((path, content))
                    break
        if len(headers) > MOST_HEADERS:
            raise UsageError(f"{source} includes more than {MOST_HEADERS} headers")
    return headers


def _header(roots: tuple[Path, ...], path: str) -> bytes | None:
    """The content of a header in the first folder that has it."""
    for root in roots:
        place = root / path
        if place.is_file():
            with place.open("rb") as file:
                return file.read(_LONGEST_HEADER)
    return None


def _check(
    report: VerificationReport, candidate: CandidatePolicy, artifact: PolicyArtifact | None, verifier: RemoteVerifier
) -> None:
    """Report, object and token must be of what was asked, and of each other."""
    facts: list[tuple[str, object, object]] = [
        ("policy", report.policy, candidate.policy),
        ("candidate", report.candidate_key, candidate.key),
        ("object", report.artifact_digest, artifact.digest if artifact else ""),
    ]
    if report.token:
        try:
            token = decode(report.token)
        except TokenError as error:
            raise _wrong(error.message) from None
        facts += [
            ("gates", report.passed, True),
            ("object of the token", token.artifact_digest, report.artifact_digest),
            ("tunables of the token", token.tunables, tuple(sorted(candidate.tunables))),
            ("report of the token", token.report_digest, report.digest),
            ("declarations of the token", token.declares, tuple(sorted(set(report.declares)))),
            ("kernel of the token", token.kernel_release, report.kernel_release),
            ("scope of the token", (token.scope, token.cgroup), (verifier.scope, verifier.cgroup)),
        ]
    for what, answered, wanted in facts:
        if answered != wanted:
            raise _wrong(f"its {what} is {str(answered)[:200]!r}, not {str(wanted)[:200]!r}")


def _wrong(why: str) -> SetupError:
    return SetupError(
        f"the verifier service gave an answer that cannot be used: {why}", "service and client must be of one version"
    )
