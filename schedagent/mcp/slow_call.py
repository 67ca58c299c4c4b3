"""Slow tools in a process of their own, which can be ended at any time, with its machines and compilers.

Lines of progress come as they are written; the result comes last. If the caller stops waiting, the process gets a
moment to end by itself, so that a run in it is noted as interrupted, and is then killed.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import anyio
from pydantic import TypeAdapter

from agents.llm.calling import ToolAnswer, try_tool
from agents.llm.exchange import ToolCall
from agents.tools.catalog import all_tools
from schedagent.core.errors import SetupError
from schedagent.core.process.child import Child
from schedagent.core.process.machine_lock import LAB_LOCK
from schedagent.core.settings import Settings
from schedagent.core.verification import VerificationReport
from schedagent.mcp.workbench import open_services

log = logging.getLogger(__name__)

GRACE_S = 3.0
"""Ending a machine and noting a run as interrupted take well under a second."""

_REPORTS: TypeAdapter[dict[str, VerificationReport]] = TypeAdapter(dict[str, VerificationReport])
_LAST = b'{"text":'


@dataclass(frozen=True)
class SlowCall:
    """One call of a slow tool.

    Args:
        settings: of this program.
        measures: whether workloads may be run.
        tool, arguments: as a model named them; the arguments are a JSON text.
    """

    settings: Settings
    measures: bool
    tool: str
    arguments: str


@dataclass(frozen=True)
class Result:
    """What a slow tool call came to.

    Args:
        answer: of the tool.
        reports: verifications that it made, by candidate key.
    """

    answer: ToolAnswer
    reports: Mapping[str, VerificationReport]


async def carry_out(call: SlowCall, progress: Callable[[str], Awaitable[None]]) -> Result:
    """Call a slow tool in another process, and pass on its progress.

    Cancelling this ends the process.

    Args:
        progress: takes each line of it.

    Raises:
        SetupError: the process died.
    """
    with tempfile.TemporaryDirectory(prefix="schedagent-call-") as folder:
        child = Child(_work, (call,), Path(folder), _is_last, task=f"runs the tool {call.tool}", grace_s=GRACE_S)
        try:
            async with aclosing(child.answers()) as lines:
                async for line in lines:
                    if _is_last(line):
                        return _read(line)
                    await progress(str(json.loads(line)["step"]))
        finally:
            await _end(child)
    raise SetupError(f"the process for {call.tool} ended without an answer")


async def _end(child: Child) -> None:
    """End a child, even if the wait for it is cancelled: it ends by itself, unless it hangs and has to be killed."""
    with anyio.CancelScope(shield=True):
        await child.end()


def _is_last(line: bytes) -> bool:
    return line.startswith(_LAST)


def _read(line: bytes) -> Result:
    values = json.loads(line)
    return Result(ToolAnswer(values["text"], values["failed"]), _REPORTS.validate_python(values["reports"]))


def _work(send: Callable[[bytes], None], call: SlowCall) -> None:
    """Do a slow tool call: the child's part."""

    def progress(text: str) -> None:
        send(json.dumps({"step": text}).encode() + b"\n")

    def waiting(line: str, _seconds: float) -> None:
        if line:
            progress(line)

    LAB_LOCK.task = f"the tool {call.tool}"
    LAB_LOCK.on_wait = waiting
    reports: dict[str, VerificationReport] = {}
    try:
        with open_services(call.settings, reports, measures=call.measures, progress=progress) as services:
            answer = try_tool(all_tools(services()), ToolCall("", call.tool, call.arguments))
    except KeyboardInterrupt:
        return
    except Exception as error:
        log.exception("%s failed", call.tool)
        answer = ToolAnswer(
            f"error: {call.tool} failed: {type(error).__name__}; the server's log shows more", failed=True
        )
    result = {"text": answer.text, "failed": answer.failed, "reports": _REPORTS.dump_python(reports, mode="json")}
    send(json.dumps(result).encode() + b"\n")
