"""One request of the verifier service, in a process of its own: whether it crashes or hangs, the service goes on.

Workers are forks of a server process that has imported what they need, so each starts within milliseconds.
May import: verifier.messages and schedagent.core.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from schedagent.core.artifact import PolicyArtifact
from schedagent.core.errors import SchedagentError, SetupError
from schedagent.core.policy import CandidatePolicy, PolicyInfo
from schedagent.core.token import Scope
from schedagent.core.verification import GateResult, Verified
from verifier.messages import FaultAnswer, FinalAnswer, GateAnswer, Message, Object, Request

log = logging.getLogger(__name__)

ANSWER_LIMIT_BYTES = 64 << 20
_CONTEXT = multiprocessing.get_context("forkserver")
_LAST_WAIT_S = 5.0


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


class Bench(Protocol):
    """What does the work; it goes to another process, so it must be picklable."""

    def verify(self, submission: Submission, on_gate: Callable[[GateResult], None]) -> Verified: ...

    def compile(self, submission: Submission) -> PolicyArtifact: ...


def prepare(modules: Sequence[str]) -> None:
    """Start the server process that workers are forked from; it is ready when this returns.

    Args:
        modules: what it imports beforehand.
    """
    _CONTEXT.set_forkserver_preload([__name__, *modules])
    first = _CONTEXT.Process(target=_nothing)
    first.start()
    first.join()


def _nothing() -> None:
    """The first worker: it starts when the imports of the server process are done."""


def unpack(request: Request, folder: Path) -> Submission:
    """Write a request's files into a new folder of our own; its paths were checked when it was read."""
    folder.mkdir()
    for name, text in request.headers.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, text.encode(errors="surrogatepass"))
    content = request.object_bytes
    place = folder / request.places[0 if content is None else 1]
    _write(place, (request.source or "").encode(errors="surrogatepass") if content is None else content)
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
    )
    return Submission(candidate, info, folder, request.kernel, request.scope, request.cgroup)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)


def is_last(line: bytes) -> bool:
    """Whether an answer is the last of its request: any but a gate's is."""
    return not line.startswith(b'{"gate":')


class Child:
    """A process that works and answers in lines. Use `answers` once, and `end` whatever happens.

    Args:
        work: called there with `send`, which takes one line, and with `arguments`; it must be picklable, as they must.
        folder: where its temporary files go; whoever made the folder removes it.
        is_last: whether a line is the last one.
        grace_s: how long it may take to end by itself (it gets a KeyboardInterrupt) before it is killed.
    """

    def __init__(
        self,
        work: Callable[..., None],
        arguments: tuple[Any, ...],
        folder: Path,
        is_last: Callable[[bytes], bool],
        grace_s: float = 0.0,
    ) -> None:
        self._is_last = is_last
        self._grace_s = grace_s
        self._ours, theirs = socket.socketpair()
        self._process = _CONTEXT.Process(target=_live, args=(work, arguments, str(folder), grace_s, theirs))
        with theirs:
            self._process.start()

    async def answers(self) -> AsyncGenerator[bytes, None]:
        """Yield the lines that it answers; raise SetupError if it dies before the last one."""
        reader, writer = await asyncio.open_connection(sock=self._ours, limit=ANSWER_LIMIT_BYTES)
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                yield line
                if self._is_last(line):
                    return
            await self._ended()
            raise SetupError(
                f"the verifier's process for this request ended early (status {self._process.exitcode})",
                "nothing can be said of the policy; the service's log may say more",
            )
        finally:
            writer.close()

    async def end(self) -> None:
        """Kill it with all that it started; QEMU ends with the process that started it."""
        self._ours.close()  # it takes that as the word to end
        if self._grace_s:
            await asyncio.to_thread(self._process.join, self._grace_s)
        pid = self._process.pid
        if pid is not None and self._process.is_alive():
            self._process.kill()
        if pid is not None:
            with suppress(ProcessLookupError, PermissionError):  # its compilers, which are in its process group
                os.killpg(pid, signal.SIGKILL)
        await self._ended()

    async def _ended(self) -> None:
        await asyncio.to_thread(self._process.join, _LAST_WAIT_S)


def _live(
    work: Callable[..., None], arguments: tuple[Any, ...], folder: str, grace_s: float, connection: socket.socket
) -> None:
    """The child's whole life."""
    os.setsid()  # so that Ctrl-C reaches its parent only, whose matter it is
    signal.signal(signal.SIGINT, signal.default_int_handler if grace_s else signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tempfile.tempdir = folder
    threading.Thread(target=_end_with, args=(connection, grace_s), daemon=True).start()
    lock = threading.Lock()

    def send(line: bytes) -> None:
        with lock:
            connection.sendall(line)

    work(send, *arguments)


class Worker(Child):
    """A process that works on one submission."""

    def __init__(self, bench: Bench, action: str, submission: Submission) -> None:
        super().__init__(_work, (bench, action, submission), submission.include_dir.parent, is_last)


def _work(send: Callable[[bytes], None], bench: Bench, action: str, submission: Submission) -> None:
    """Do what a request asks for."""

    def tell(message: Message) -> None:
        send(message.line())

    try:
        if action == "compile":
            tell(FinalAnswer(report=None, object=Object.of(bench.compile(submission))))
            return
        verified = bench.verify(submission, lambda result: tell(GateAnswer(gate=result)))
        artifact = verified.artifact
        tell(FinalAnswer(report=verified.report, object=None if artifact is None else Object.of(artifact)))
    except SchedagentError as error:
        tell(FaultAnswer.of(error))
    except Exception as error:
        log.exception("a request failed")
        tell(FaultAnswer.of(SetupError(f"the verifier failed: {type(error).__name__}", "the service's log says more")))


def _end_with(connection: socket.socket, grace_s: float) -> None:
    """End with the parent: nothing is ever sent this way, so what comes is the end."""
    with suppress(OSError):
        connection.recv(1)
    if grace_s:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(grace_s)
    os.killpg(0, signal.SIGKILL)
