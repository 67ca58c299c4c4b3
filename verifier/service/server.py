"""The verifier as a service: requests over a unix socket in, gate results, report and token out.

The process of the agents never sees the signing key, and nothing that it sends is ever used as a path. Each request
is worked on in a process of its own; a peer that goes away, or takes too long, has its process killed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from schedagent.core.errors import SchedagentError, SetupError, UsageError
from schedagent.core.process.child import prepare
from schedagent.core.process.listener import Admission, Peer, peer_of
from verifier.service.messages import FaultAnswer, VerifyRequest, read_request
from verifier.service.worker import RequestHandler, Worker, is_last, unpack

log = logging.getLogger(__name__)

_LAST_WORD_S = 5.0


@dataclass(frozen=True)
class ServiceLimits:
    """What one peer, and all together, may take.

    Args:
        request_bytes: size of a request.
        request_s: time within which a request must be there, whole.
        connection_s: time within which it is answered; machines are used one after the other, so this has to cover
            those ahead in the queue.
        parallel: requests that are worked on at once.
        waiting: requests that may wait for that; a further one is refused.
        connections: connections at once.
        user_connections: of these, connections of one user; so nobody's requests keep all others out.
    """

    parallel: int
    request_bytes: int = 4 << 20
    request_s: float = 10.0
    connection_s: float = 1800.0
    waiting: int = 16
    connections: int = 64
    user_connections: int = 6


class VerifierService:
    """Answers requests until it is stopped.

    Args:
        bench: does the work, in other processes.
        admission: who may ask.
    """

    def __init__(self, bench: RequestHandler, admission: Admission, limits: ServiceLimits) -> None:
        self._bench = bench
        self._admission = admission
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.parallel)
        self._waiting = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._users: Counter[int] = Counter()
        self._stopping = asyncio.Event()

    async def run(self, listener: socket.socket, preload: Sequence[str] = ()) -> None:
        """Serve on a listening socket until SIGTERM or SIGINT; what is being worked on then is cancelled.

        Args:
            preload: modules that the bench needs.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await asyncio.to_thread(prepare, preload)
        log.info("listening on %s", listener.getsockname())
        server = await asyncio.start_unix_server(self._connected, sock=listener, limit=self._limits.request_bytes)
        try:
            await self._stopping.wait()
        finally:
            server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio runs this as a task"
        self._connections.add(task)
        try:
            await self._answer(reader, writer)
        except SchedagentError as error:
            log.info("refused: %s", error.message)
            await _last_word(writer, error)
        except asyncio.CancelledError:
            await _last_word(writer, SetupError("the verifier service is stopping", "ask again when it runs"))
        except ConnectionError as error:
            log.info("a peer is gone: %s", error)
        except Exception:  # one connection ends here, not the service: the log gets the traceback, the peer a word
            log.exception("a request failed")
            await _last_word(writer, SetupError("the verifier service failed", "see its log"))
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one request from its first byte to its last answer."""
        connection: socket.socket = writer.get_extra_info("socket")
        peer = peer_of(connection)
        if not self._admission.admits(peer):
            raise UsageError(
                f"{peer} may not use this verifier", "it must be of a user or group that the service is set up to admit"
            )
        if len(self._connections) > self._limits.connections:
            raise SetupError(f"the verifier service has {self._limits.connections} connections already", "try later")
        with self._counted(peer):
            await self._serve(peer, reader, writer)

    @contextmanager
    def _counted(self, peer: Peer) -> Iterator[None]:
        """Count a connection of a user; raise SetupError if there are too many of the same one."""
        if self._users[peer.uid] >= self._limits.user_connections:
            raise SetupError(f"user id {peer.uid} has {self._users[peer.uid]} requests here already", "wait for them")
        self._users[peer.uid] += 1
        try:
            yield
        finally:
            self._users[peer.uid] -= 1
            self._users += Counter()  # forget who has none left

    async def _serve(self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read the request of a peer that may ask, and work on it until it is answered or the peer is gone."""
        request = await self._read(reader)
        log.info("%s of policy %s for %s", request.action, request.policy, peer)
        work = asyncio.ensure_future(self._work(request, writer))
        gone = asyncio.ensure_future(reader.read(1))  # a peer has nothing more to say
        try:
            limit_s = self._limits.connection_s
            await asyncio.wait({work, gone}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            elif gone.done():
                log.info("%s went away; its request is cancelled", peer)
            else:
                raise SetupError(f"the request was not answered within {limit_s:g} s", "others came first: try later")
        finally:
            await _cancel(work, gone)

    async def _read(self, reader: asyncio.StreamReader) -> VerifyRequest:
        """Read the one line that a peer sends."""
        try:
            line = await asyncio.wait_for(reader.readuntil(b"\n"), self._limits.request_s)
        except asyncio.LimitOverrunError:
            raise UsageError(f"the request is larger than {self._limits.request_bytes} bytes") from None
        except asyncio.IncompleteReadError as error:
            raise UsageError(f"the request ended after {len(error.partial)} bytes, without a newline") from None
        except TimeoutError:
            raise UsageError(f"the request was not complete within {self._limits.request_s:g} s") from None
        return read_request(line)

    async def _work(self, request: VerifyRequest, writer: asyncio.StreamWriter) -> None:
        """Wait for a slot, work, and pass on what the worker answers; its last word when nothing of it is left."""
        last = b""
        async with self._slot():
            with tempfile.TemporaryDirectory(prefix="schedagent-request-", ignore_cleanup_errors=True) as folder:
                worker = Worker(self._bench, request.action, unpack(request, Path(folder, "files")))
                try:
                    async with aclosing(worker.answers()) as answers:
                        async for line in answers:
                            if is_last(line):
                                last = line
                            else:
                                writer.write(line)
                                await writer.drain()
                finally:
                    await worker.end()
        writer.write(last)
        await writer.drain()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Wait for one's turn; raise SetupError if too many wait already."""
        if self._slots.locked() and self._waiting >= self._limits.waiting:
            raise SetupError(f"the verifier service is busy: {self._waiting} requests wait already", "try later")
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()


async def _cancel(*tasks: asyncio.Future[object] | asyncio.Future[None] | asyncio.Future[bytes]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _last_word(writer: asyncio.StreamWriter, error: SchedagentError) -> None:
    """Tell the peer why; one that does not listen is not waited for."""
    with suppress(OSError, TimeoutError):
        writer.write(FaultAnswer.of(error).line())
        await asyncio.wait_for(writer.drain(), _LAST_WORD_S)
