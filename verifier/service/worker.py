"""One request of the verifier service, in a process of its own: whether it crashes or hangs, the service continues."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from schedagent.core.errors import SchedagentError, SetupError
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.policies.proposal import Origin
from schedagent.core.policies.rodata import read_rodata
from schedagent.core.process.child import Child
from schedagent.core.process.machine_lock import LAB_LOCK
from schedagent.core.token import Scope
from schedagent.core.verification import GateResult, Verified
from verifier.service.messages import FaultAnswer, FinalAnswer, GateAnswer, Message, Object, VerifyRequest, WaitAnswer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submission:
    """A request, unpacked: a candidate and its files.

    Args:
        candidate, info: as for verifier.pipeline.Verifier.verify.
        include_dir: folder with its headers.
        kernel: release to verify for; empty for the default.
        scope, cgroup: what the token is to allow.
    """

    candidate: CandidatePolicy
    info: PolicyInfo
    include_dir: Path
    kernel: str
    scope: Scope
    cgroup: str


class RequestHandler(Protocol):
    """What does the work; it goes to another process, so it must be picklable."""

    def verify(self, submission: Submission, on_gate: Callable[[GateResult], None]) -> Verified: ...

    def compile(self, submission: Submission) -> PolicyArtifact: ...


def unpack(request: VerifyRequest, folder: Path) -> Submission:
    """Write a request's files into a new folder of our own; its paths were checked when it was read."""
    folder.mkdir()
    for name, text in request.headers.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, text.encode(errors="surrogatepass"))
    content = request.object_bytes
    place = folder / request.places[0 if content is None else 1]
    _write(place, (request.source or "").encode(errors="surrogatepass") if content is None else content)
    parts = [_part(folder.with_name("parts") / str(number), *part) for number, part in enumerate(request.parts)]
    defaults = {tunable.name: tunable.default for tunable in request.documented}
    chosen = tuple(sorted({**defaults, **request.tunables}.items()))
    candidate = CandidatePolicy(request.policy, chosen, request.history, request.classes)
    info = PolicyInfo(
        name=request.policy,
        description="sent to the verifier",
        target_workloads=(),
        algorithm="unknown",
        limitations="unknown",
        tunables=request.documented,
        inputs=request.inputs,
        source=place,
        declares=request.declares,
        reads=request.reads,
        parts=tuple(parts),
        rodata=read_rodata(request.rodata, "rodata"),
        origin=Origin.GENERATE,  # whoever asks over a socket is not asked where it comes from
    )
    return Submission(candidate, info, folder, request.kernel, request.scope, request.cgroup)


def _part(folder: Path, name: str, text: str) -> Path:
    """Write a further source into a folder of its own: two may have one name, and none is a header."""
    folder.mkdir(parents=True)
    _write(folder / name, text.encode(errors="surrogatepass"))
    return folder / name


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)


def is_last(line: bytes) -> bool:
    """Whether an answer is the last of its request: any but a gate's and a wait's is."""
    return not line.startswith((b'{"gate":', b'{"waiting":'))


class Worker(Child):
    """A process that works on one submission."""

    def __init__(self, bench: RequestHandler, action: str, submission: Submission) -> None:
        task = f"works on {submission.info.name}"
        super().__init__(_work, (bench, action, submission), submission.include_dir.parent, is_last, task=task)


def _work(send: Callable[[bytes], None], bench: RequestHandler, action: str, submission: Submission) -> None:
    """Do what a request asks for."""

    def answer(message: Message) -> None:
        send(message.line())

    LAB_LOCK.task = f"the verifier service, on policy {submission.info.name}"
    LAB_LOCK.on_wait = lambda line, seconds: answer(WaitAnswer(waiting=line, seconds=seconds))
    try:
        if action == "compile":
            answer(FinalAnswer(report=None, object=Object.of(bench.compile(submission))))
            return
        verified = bench.verify(submission, lambda result: answer(GateAnswer(gate=result)))
        artifact = verified.artifact
        answer(FinalAnswer(report=verified.report, object=None if artifact is None else Object.of(artifact)))
    except SchedagentError as error:
        answer(FaultAnswer.of(error))
    except Exception as error:
        log.exception("a request failed")
        answer(FaultAnswer.of(SetupError(f"the verifier failed: {type(error).__name__}", "see the service's log")))
