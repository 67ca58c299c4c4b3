"""The atomic tools over MCP, on stdin and stdout or over HTTP on the loopback interface. The only user of `mcp`.

Tools are those of agents/tools/catalog.py, word for word. What they return is fenced, because it holds data that others
wrote; the server's instructions explain that. Slow ones work in a process of their own, report how far they are, and
end when the client cancels the call or goes away.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import anyio
import mcp_types as types
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings

from agents.llm.calling import Tool, ToolAnswer, try_tool
from agents.llm.exchange import ToolCall
from agents.llm.fences import Fence, new_mark
from agents.tools.catalog import all_tools
from agents.tools.services import Services
from schedagent import __version__
from schedagent.core.errors import SchedagentError, SetupError, UsageError
from schedagent.core.process.child import prepare
from schedagent.core.process.streams import drop_output
from schedagent.core.settings import Settings
from schedagent.core.terminal.foreign import one_line
from schedagent.core.terminal.printable import printable
from schedagent.core.verification import VerificationReport
from schedagent.mcp.bearer import admits
from schedagent.mcp.connections import ADMITTED, Connection
from schedagent.mcp.slow_call import SlowCall, carry_out
from schedagent.mcp.stdin_lines import StdinLines
from schedagent.mcp.workbench import open_services

log = logging.getLogger(__name__)

LONGEST_ARGUMENTS = 600_000
"""Characters of JSON: a source of 256 KiB, escaped."""
LONGEST_ANSWER = 100_000
LARGEST_REQUEST_BYTES = 1 << 20
SLOW_AT_ONCE = 2
SLOW_IN_ALL = 8
KEPT_REPORTS = 64
SHUTDOWN_S = 3

_SLOW_CALLS = "schedagent.mcp.slow_call"
"""The module that processes for slow calls have imported before they are forked."""

_PURPOSE = (
    "schedagent measures whether another CPU scheduling policy (sched_ext BPF) runs a workload faster than the Linux "
    "default, in a micro-VM; nothing here changes how this machine schedules, and nothing deploys. Start with "
    "list_runs and workload_profile. "
)

Context = ServerRequestContext[Any, Any]


class ToolServer:
    """Answers calls of tools.

    Args:
        settings: of this program.
        services: gives what tools that read work with; those that act open their own.
        reports: of the services; verifications are added here for later calls.
    """

    def __init__(
        self, settings: Settings, services: Callable[[], Services], reports: MutableMapping[str, VerificationReport]
    ) -> None:
        self._settings = settings
        self._services = services
        self._reports = reports
        bench = services().bench
        self._measures = bench is not None and bench.measures
        self._fence = Fence(new_mark())
        self._slots = asyncio.Semaphore(SLOW_AT_ONCE)
        self._slow = 0

    @property
    def server(self) -> Server[Any]:
        """The MCP server that offers the tools."""
        return Server(
            "schedagent",
            version=__version__,
            instructions=_PURPOSE + self._fence.rule(),
            on_list_tools=self._list,
            on_call_tool=self._call,
        )

    async def _list(self, _context: Context, _params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[described(tool) for tool in await self._tools()])

    async def _tools(self) -> tuple[Tool, ...]:
        """The tools, with the policies there are at this moment."""
        return await anyio.to_thread.run_sync(lambda: all_tools(self._services()))

    async def _call(self, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        arguments = json.dumps(params.arguments or {})
        try:
            if len(arguments) > LONGEST_ARGUMENTS:
                raise UsageError(f"the arguments are {len(arguments)} characters long, accepted: {LONGEST_ARGUMENTS}")
            answer = await self._answer(context, params.name, arguments)
        except SchedagentError as error:
            answer = ToolAnswer(f"error: {error}", failed=True)
        shown = self._fence.around(f"result of {params.name}", printable(answer.text), LONGEST_ANSWER)
        return types.CallToolResult(content=[types.TextContent(text=shown)], is_error=answer.failed)

    async def _answer(self, context: Context, name: str, arguments: str) -> ToolAnswer:
        tools = await self._tools()
        if any(tool.name == name and tool.slow for tool in tools):
            return await self._carry_out_slow(context, name, arguments)
        return await anyio.to_thread.run_sync(try_tool, tools, ToolCall("", name, arguments))

    async def _carry_out_slow(self, context: Context, name: str, arguments: str) -> ToolAnswer:
        """Call a slow tool; a few at once, and not too many that wait."""
        if self._slow >= SLOW_IN_ALL:
            raise SetupError(f"{SLOW_IN_ALL} slow calls are under way or waiting", "wait for one of them, or cancel it")
        call = SlowCall(self._settings, self._measures, name, arguments)
        self._slow += 1
        try:
            async with self._slots:
                result = await carry_out(call, progress_of(context))
        finally:
            self._slow -= 1
        for key, report in result.reports.items():
            self._reports.pop(key, None)
            self._reports[key] = report
        while len(self._reports) > KEPT_REPORTS:
            self._reports.pop(next(iter(self._reports)))
        return result.answer


def described(tool: Tool) -> types.Tool:
    """Return a tool as MCP describes it. None destroys anything, and none reaches beyond this machine."""
    return types.Tool(
        name=tool.name,
        description=tool.description,
        input_schema=tool.arguments.model_json_schema(),
        annotations=types.ToolAnnotations(read_only_hint=tool.read_only, destructive_hint=False, open_world_hint=False),
    )


def progress_of(context: Context) -> Callable[[str], Awaitable[None]]:
    """Return what passes a line on to the client, as progress of its call; the number only grows."""
    lines = 0

    async def report(text: str) -> None:
        nonlocal lines
        lines += 1
        await context.session.report_progress(lines, None, one_line(text))

    return report


@contextmanager
def opened(settings: Settings, *, measures: bool) -> Iterator[Server[Any]]:
    """Open the server; nothing is listened to yet."""
    reports: dict[str, VerificationReport] = {}
    with open_services(settings, reports, measures=measures) as services:
        yield ToolServer(settings, services, reports).server


async def serve_stdio(server: Server[Any]) -> None:
    """Answer on stdin and stdout until stdin ends, or the client that reads stdout is gone."""
    lines: Any = StdinLines(LARGEST_REQUEST_BYTES)
    try:
        async with stdio_server(stdin=lines) as (reading, writing):
            await asyncio.to_thread(prepare, [_SLOW_CALLS])  # only now: stdin and stdout are not its to have
            await server.run(reading, writing, server.create_initialization_options())
    except* BrokenPipeError:
        log.info("the client went away; its calls are cancelled")
        drop_output()


async def serve_http(server: Server[Any], listener: socket.socket, token: str) -> None:
    """Answer on a listening socket of the loopback interface until SIGTERM or SIGINT."""
    port = listener.getsockname()[1]
    names = [f"127.0.0.1:{port}", f"localhost:{port}"]
    app = server.streamable_http_app(
        max_request_body_size=LARGEST_REQUEST_BYTES,
        transport_security=TransportSecuritySettings(
            allowed_hosts=names, allowed_origins=[f"http://{name}" for name in names]
        ),
    )
    config = uvicorn.Config(
        Guard(app, token),
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        http=Connection,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    await asyncio.to_thread(prepare, [_SLOW_CALLS])
    await uvicorn.Server(config).serve([listener])


class Guard:
    """Lets through only requests that carry the token; an ASGI application around another."""

    def __init__(self, app: Callable[..., Awaitable[None]], token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
            if not admits(self._token, given):
                await _refuse(send)
                return
            scope[ADMITTED] = True
        await self._app(scope, receive, send)


async def _refuse(send: Any) -> None:
    body = b'{"error":"this server wants the bearer token of its user"}'
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Bearer"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
