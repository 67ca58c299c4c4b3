"""Cancelling a verification over MCP ends its micro-VM."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.mcp_servers import over_stdio, text_of

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


def machines(state: Path) -> list[int]:
    """The machines that a server of this state folder started; QEMU also runs for a moment to tell its version."""
    mark, found = f"SCHEDAGENT_STATE={state}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if (
                b"qemu" in words[0]
                and b"-nodefaults" in words
                and mark in (folder / "environ").read_bytes().split(b"\0")
            ):
                found.append(int(folder.name))
    return found


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.05)


def test_cancel_ends_the_machine(tmp_path):
    state, told = tmp_path / "state", []

    async def progress(_number, _total, message):
        told.append(message)

    async def body():
        async with over_stdio(state) as client:
            asked = {"policy": "fifo", "gates": "all"}
            call = asyncio.ensure_future(client.call_tool("verify_policy", asked, progress_callback=progress))
            await asyncio.wait_for(until(lambda: len(told) >= 3 and machines(state)), 120)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
            await asyncio.wait_for(until(lambda: not machines(state)), 10)
            assert "runs, newest first" in text_of(await client.call_tool("list_runs", {}))

    asyncio.run(asyncio.wait_for(body(), 240))
    assert told[0] == "gate 1 of 7, source: passed"
    assert len(told) < 7, "it went on"
