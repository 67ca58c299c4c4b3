"""Real MCP servers, and the official client for them: over stdin and stdout, and over HTTP."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from tests.support.paths import ROOT

TOKEN = "a-token-that-nobody-guesses-0123456789"


def environment(state: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "SCHEDAGENT_STATE": str(state), **more}


def program(*options: str) -> list[str]:
    return [sys.executable, "-m", "schedagent", "mcp", *options]


@asynccontextmanager
async def over_stdio(state: Path, *options: str, mode: str = "auto", **more: str):
    """A client of a new server; the server's stderr goes to the file stderr beside the state folder."""
    command, *arguments = program(*options)
    parameters = StdioServerParameters(command=command, args=arguments, env=environment(state, **more))
    with (state.parent / "stderr").open("w") as errors:
        async with Client(stdio_client(parameters, errlog=errors), mode=mode) as client:
            yield client


@asynccontextmanager
async def over_http(url: str, token: str | None = TOKEN, mode: str = "auto", **headers: str):
    """A client of a running server."""
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield client


@contextmanager
def http_server(state: Path, *options: str, **more: str):
    """A new server on a free port: yields its process and its address."""
    chosen = {"SCHEDAGENT_MCP_TOKEN": TOKEN} | more
    process = subprocess.Popen(
        program("--http", "--port", "0", *options),
        env=environment(state, **chosen),
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith("MCP at http://127.0.0.1:"), said + process.stderr.read()
        yield process, said.split()[2].rstrip(";")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def text_of(result) -> str:
    """The text between the fences of a result."""
    [block] = result.content
    first, *lines, last = block.text.splitlines()
    assert first.startswith("<<<DATA "), first
    assert last.startswith("<<<END "), last
    return "\n".join(lines)


def run(body) -> None:
    """Run a test's coroutine, at most a minute long."""
    asyncio.run(asyncio.wait_for(body, 60))
