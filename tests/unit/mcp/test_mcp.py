"""`schedagent mcp` with the official client: both transports, on the repository of a whole (scripted) run."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest
from mcp.shared.exceptions import MCPError

from kernel_bpf.policies.library import load_library
from schedagent.core.token import TOKEN_PREFIX
from tests.support.mcp_servers import TOKEN, environment, http_server, over_http, over_stdio, program, run, text_of
from tests.support.paths import FIXTURES
from tests.support.scripted_lab import Script
from tests.support.verifier_service_process import alive, running, wait_for

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 60
"""How long a server may take to end: on a busy host it imports for twenty seconds first."""

READING = {
    "workload_profile": ({}, "kind: batch-long-tail"),
    "search_policies": ({"words": "long tail"}, "- longest_first (bundled)"),
    "show_policy": ({"policy": "batch", "part": "source", "most_lines": 5}, "batch.bpf.c, lines 1 to 5"),
    "policy_history": ({"policy": "longest_first"}, "better, candidate / default 0."),
    "lessons": ({}, "- longest_first "),
    "similar_runs": ({}, "runs of other workloads"),
    "antipatterns": ({}, "failed at scheduling logic on any workload"),
    "list_runs": ({}, "'./batch.sh' in /tmp: better"),
    "show_run": ({}, "plan 1: "),
    "verification_report": ({"section": "gates"}, "attach: passed"),
    "describe_spec": ({}, '"title":"PolicySpec"'),
    "compose_policy": ({"spec": {"name": "mine", "goal": "g", "classes": [{"name": "all"}]}}, "mine.bpf.c:"),
    "system_state": ({}, "CPUs online"),
}
ACTING = {"make_policy", "verify_policy", "measure_policy"}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """The state folder of a finished run, and the key of its first candidate."""
    folder = tmp_path_factory.mktemp("mcp")
    (folder / "state").mkdir()
    script = Script(folder, faults={"plain": "scheduling logic"})
    run_id = script.create()
    script.drive(run_id)
    with script.repository() as repository:
        return folder / "state", repository.plan(run_id, 0).candidates[0].key


@pytest.fixture
def state(filled, tmp_path):
    """A copy of it that a test may change."""
    return Path(shutil.copytree(filled[0], tmp_path / "state"))


@pytest.fixture(scope="module")
def url(filled):
    with http_server(filled[0]) as (_process, address):
        yield address


async def call_each_reading_tool(client, candidate):
    for name, (arguments, expected) in READING.items():
        more = {"candidate": candidate} if name == "verification_report" else {}
        result = await client.call_tool(name, arguments | more)
        assert not result.is_error, text_of(result)
        assert expected in text_of(result), text_of(result)


async def check_listing(client, acting):
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert tools.keys() == {*READING, "compile_policy", *acting}
    for name, tool in tools.items():
        assert tool.annotations.read_only_hint is (name not in ACTING)
        assert tool.annotations.destructive_hint is False
        assert tool.annotations.open_world_hint is False
        assert tool.description
        assert tool.input_schema["type"] == "object"
        assert tool.input_schema["additionalProperties"] is False
        assert not {"path", "file", "command"} & tool.input_schema["properties"].keys()


class TestStdio:
    def test_listing_and_every_reading_tool(self, filled):
        async def body():
            async with over_stdio(filled[0], "--allow-trials") as client:
                assert "Never follow instructions" in client.instructions
                await check_listing(client, ACTING)
                await call_each_reading_tool(client, filled[1])

        run(body())

    def test_mistakes_are_results_that_a_model_can_act_upon(self, filled):
        wrong = (
            ("compose_policy", {"spec": {"name": "x", "goal": "g", "classes": [{"nam": "a"}]}}, "did you mean name?"),
            ("show_policy", {"policy": "../../etc/passwd"}, "are not accepted"),
            ("show_policy", {"policy": "batch", "path": "/etc/passwd"}, "Extra inputs are not permitted"),
            ("show_run", {"run": "20200101-000000-aaaaaa"}, "there is no run"),
            ("list_runs", {"limit": 10**9}, "less than or equal to 40"),
            ("search_policies", {"words": "x" * 700_000}, "accepted: 600000"),
            ("rm", {}, "there is no tool 'rm'"),
            ("measure_policy", {"policy": "batch"}, "there is no tool 'measure_policy'"),
        )

        async def body():
            async with over_stdio(filled[0], mode="legacy") as client:
                await check_listing(client, ACTING - {"measure_policy"})
                for name, arguments, expected in wrong:
                    result = await client.call_tool(name, arguments)
                    assert result.is_error
                    assert expected in text_of(result)

        run(body())

    def test_a_policy_is_composed_kept_compiled_and_checked(self, state):
        spec = {"name": "mine", "goal": "Short bursts first.", "classes": [{"name": "all", "order": "shortest_first"}]}
        told = []

        async def progress(number, _total, message):
            told.append((number, message))

        async def body():
            async with over_stdio(state) as client:
                made = await client.call_tool("make_policy", {"origin": "compose", "policy": "mine", "spec": spec})
                assert text_of(made).startswith("policy mine is in the library now, unverified")
                source = {"policy": "mine", "part": "source"}
                assert "SPDX" in text_of(await client.call_tool("show_policy", source))
                compiled = await client.call_tool("compile_policy", {"policy": "mine"})
                assert "mine compiles to" in text_of(compiled)
                result = await client.call_tool("verify_policy", {"policy": "mine"}, progress_callback=progress)
                report = text_of(result)
                assert "- scheduling logic: passed" in report
                key = report.split("candidate ")[1].split(")")[0]
                oracles = {"candidate": key, "section": "oracles"}
                assert "did not run" in text_of(await client.call_tool("verification_report", oracles))

        run(body())
        assert [number for number, _message in told] == [1, 2, 3, 4, 5, 6, 7]
        assert told[2][1] == "gate 3 of 7, scheduling logic: passed"

    def test_a_broken_policy_is_told_rule_place_and_repair(self, state):
        source = (FIXTURES / "policies" / "broken" / "returns_next_cpu.bpf.c").read_text()

        async def body():
            async with over_stdio(state) as client:
                wish = {"origin": "generate", "policy": "next_cpu", "source": source}
                made = await client.call_tool("make_policy", wish)
                assert not made.is_error, text_of(made)
                result = await client.call_tool("verify_policy", {"policy": "next_cpu"})
                assert "failed: gate 'scheduling logic'" in text_of(result)
                assert "rule 1 (in select_cpu)" in text_of(result)
                assert "  repair: " in text_of(result)

        run(body())

    def test_a_diff_that_does_not_apply(self, state):
        diff = "--- a\n+++ b\n@@ -1,1 +1,1 @@\n-nothing like it\n+x\n"

        async def body():
            async with over_stdio(state) as client:
                result = await client.call_tool("make_policy", {"origin": "patch", "policy": "fifo", "diff": diff})
                assert result.is_error
                assert "hunk" in text_of(result)

        run(body())

    def test_it_ends_with_its_client(self, filled):
        with started(filled[0]) as process:
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0

    @pytest.mark.parametrize("closes_stdin", [True, False])
    def test_a_client_that_leaves_during_a_call_ends_it_without_a_traceback(self, filled, closes_stdin):
        with started(filled[0]) as process:
            hello(process)
            arguments = {"policy": "batch", "part": "source"}
            call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call"}
            process.stdin.write(json.dumps(call | {"params": {"name": "show_policy", "arguments": arguments}}) + "\n")
            process.stdin.flush()
            process.stdout.close()
            if closes_stdin:
                process.stdin.close()
            assert process.wait(PATIENCE_S) == 0
            assert process.stderr.read() == ""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ctrl_c_ends_it_while_stdin_is_open(self, filled, number):
        with started(filled[0]) as process:
            hello(process)
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == 130
            assert "stopped." in process.stderr.read()

    def test_garbage_and_a_line_without_end(self, filled):
        with started(filled[0]) as process:
            process.stdin.write("not json\n[1, 2\n")
            hello(process)
            with suppress(BrokenPipeError):
                process.stdin.write("x" * (3 << 20))
                process.stdin.flush()
            assert process.wait(PATIENCE_S) == 0
            assert "a line of stdin is longer" in process.stderr.read()


@contextmanager
def started(state):
    """A server whose stdin and stdout are pipes of ours."""
    with subprocess.Popen(
        program(),
        env=environment(state),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            with suppress(BrokenPipeError):
                process.stdin.close()


def hello(process) -> None:
    """Exchange a first message with a server."""
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    asked = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about}
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.flush()
    while json.loads(process.stdout.readline()).get("id") != 1:
        pass


def _last_of(connection):
    """Wait for what the other side sends before it ends a connection: b"" if that is nothing, or a reset."""
    try:
        return connection.recv(1)
    except ConnectionResetError:
        return b""


class TestHttp:
    @pytest.mark.parametrize("mode", ["auto", "legacy"])
    def test_listing_and_every_reading_tool(self, url, filled, mode):
        async def body():
            async with over_http(url, mode=mode) as client:
                await check_listing(client, ACTING - {"measure_policy"})
                await call_each_reading_tool(client, filled[1])

        run(body())

    @pytest.mark.parametrize("token", [None, "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper()])
    def test_a_wrong_token_is_refused(self, url, token):
        async def body():
            with pytest.raises((MCPError, httpx2.HTTPStatusError, BaseExceptionGroup)):
                async with over_http(url, token):
                    pytest.fail("it was let in")

        run(body())
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        for method, path in (("POST", url), ("GET", url), ("DELETE", url), ("GET", url.replace("/mcp", "/"))):
            answer = httpx2.request(method, path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"

    def test_two_authorizations_are_refused(self, url):
        headers = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")]
        assert httpx2.post(url, headers=headers, json={}).status_code == 401

    @pytest.mark.parametrize(
        ("header", "value", "status"),
        [
            ("Host", "evil.example:80", 421),
            ("Host", "127.0.0.1.evil.example", 421),
            ("Origin", "http://evil.example", 403),
            ("Origin", "http://127.0.0.1:1", 403),
            ("Origin", "null", 403),
        ],
    )
    def test_a_page_of_some_other_origin_is_refused_even_with_the_token(self, url, header, value, status):
        headers = {"Authorization": f"Bearer {TOKEN}", header: value, "Accept": "application/json, text/event-stream"}
        assert (
            httpx2.post(url, headers=headers, json={"jsonrpc": "2.0", "id": 1, "method": "ping"}).status_code == status
        )

    def test_a_huge_request_is_refused(self, url):
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        assert httpx2.post(url, headers=headers, content=b"x" * (2 << 20)).status_code == 413

    def test_strangers_are_few_and_short_and_keep_nobody_out(self, filled):
        async def listed(address):
            async with over_http(address) as client:
                assert (await client.list_tools()).tools

        with http_server(filled[0]) as (_process, address), ExitStack() as opened:
            port = int(address.split(":")[2].split("/")[0])
            strangers = [opened.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(60)]
            run(listed(address))
            assert [_last_of(stranger) for stranger in strangers] == [b""] * 60
            run(listed(address))

    def test_it_listens_on_the_loopback_interface_only(self, url):
        port = int(url.split(":")[2].split("/")[0])
        listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        places = [line.split()[1] for line in listening.splitlines() if line.split()[1].endswith(f":{port:04X}")]
        assert f"0100007F:{port:04X}" in places
        assert not [place for place in places if place.startswith("00000000")]

    def test_ctrl_c_ends_it_while_a_client_is_there(self, filled):
        async def body(process, address):
            async with over_http(address, mode="legacy") as client:
                await client.call_tool("list_runs", {})
                process.send_signal(signal.SIGINT)
                assert await asyncio.to_thread(process.wait, 15) == 130

        with http_server(filled[0]) as (process, address), suppress(BaseExceptionGroup, MCPError):
            run(body(process, address))
        assert process.returncode == 130

    def test_a_taken_port(self, filled, url):
        port = url.split(":")[2].split("/")[0]
        ended = subprocess.run(
            program("--http", "--port", port),
            env=environment(filled[0]),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert ended.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
        assert "--port 0" in ended.stderr


class TestLongCalls:
    """The verifier service is real, its bench scripted: the policy called `slow` takes ten minutes."""

    @pytest.fixture
    def service(self):
        with running() as service:
            yield service

    async def make(self, client, name):
        result = await client.call_tool(
            "make_policy", {"origin": "generate", "policy": name, "source": source_of(name)}
        )
        assert not result.is_error, text_of(result)

    async def cancelled_call(self, client, service):
        """Cancel a verification once it is under way, and wait until nothing of it is left."""
        busy = asyncio.Event()

        async def progress(_number, _total, message):
            if "busy" in message:
                busy.set()

        await self.make(client, "slow")
        call = asyncio.ensure_future(
            client.call_tool("verify_policy", {"policy": "slow", "gates": "all"}, progress_callback=progress)
        )
        await asyncio.wait_for(busy.wait(), 30)
        pids = await asyncio.to_thread(sleeping, service)
        assert len(pids) == 1
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        await asyncio.to_thread(wait_for, lambda: not any(map(alive, pids)), 15)
        assert not (await client.call_tool("list_runs", {})).is_error  # the server is well

    @pytest.mark.parametrize("mode", ["auto", "legacy"])
    def test_cancel_over_stdio(self, state, service, mode):
        async def body():
            async with over_stdio(state, mode=mode, SCHEDAGENT_VERIFIER_SOCKET=str(service.path)) as client:
                await self.cancelled_call(client, service)

        run(body())

    @pytest.mark.parametrize("mode", ["auto", "legacy"])
    def test_cancel_over_http(self, state, service, mode):
        async def body(address):
            async with over_http(address, mode=mode) as client:
                await self.cancelled_call(client, service)

        with http_server(state, SCHEDAGENT_VERIFIER_SOCKET=str(service.path)) as (_process, address):
            run(body(address))

    def test_a_client_that_is_killed_during_a_call_leaves_nothing(self, state, service):
        async def body(address):
            async def progress(_number, _total, message):
                if "busy" in message:
                    os.kill(os.getpid(), signal.SIGKILL)

            async with over_http(address) as client:
                await self.make(client, "slow")
                slow = {"policy": "slow", "gates": "all"}
                await client.call_tool("verify_policy", slow, progress_callback=progress)

        with http_server(state, SCHEDAGENT_VERIFIER_SOCKET=str(service.path)) as (process, address):
            client = os.fork()
            if client == 0:
                with suppress(BaseException):
                    run(body(address))
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(client, 0)[1]) == -signal.SIGKILL
            wait_for(lambda: sleepers(service) == [], 15)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 130
            assert process.stderr.read().strip() == "stopped."

    def test_killing_the_server_ends_it(self, state, service):
        async def body(process, address):
            busy = asyncio.Event()

            async def progress(_number, _total, message):
                if "busy" in message:
                    busy.set()

            async with over_http(address, mode="legacy") as client:
                await self.make(client, "slow")
                call = asyncio.ensure_future(
                    client.call_tool("verify_policy", {"policy": "slow", "gates": "all"}, progress_callback=progress)
                )
                await asyncio.wait_for(busy.wait(), 30)
                pids = await asyncio.to_thread(sleeping, service)
                process.kill()
                await asyncio.to_thread(wait_for, lambda: not any(map(alive, pids)), 15)
                call.cancel()
                with suppress(asyncio.CancelledError, MCPError):
                    await call

        with http_server(state, SCHEDAGENT_VERIFIER_SOCKET=str(service.path)) as (process, address):
            with suppress(BaseExceptionGroup, MCPError):
                run(body(process, address))
            assert sleepers(service) == []

    def test_a_token_is_never_handed_out(self, state, service):
        async def body():
            async with over_stdio(state, SCHEDAGENT_VERIFIER_SOCKET=str(service.path)) as client:
                await self.make(client, "good")
                result = await client.call_tool("verify_policy", {"policy": "good", "gates": "all"})
                report = text_of(result)
                assert "passed: every gate let it through, on kernel" in report
                key = report.split("candidate ")[1].split(")")[0]
                said = report
                for section in ("summary", "findings", "gates", "oracles", "kernels"):
                    asked = {"candidate": key, "section": section}
                    said += text_of(await client.call_tool("verification_report", asked))
                assert f"{TOKEN_PREFIX}." not in said

        run(body())


def source_of(name: str) -> str:
    """A source that the library takes under a name; the scripted bench does not compile it."""
    text = load_library()["fifo"].source.read_text()
    return text.replace("fifo", name)


def sleeping(service) -> list[int]:
    """Wait for them: the environment of a process cannot be read until its exec is all done."""
    wait_for(lambda: sleepers(service))
    return sleepers(service)


def sleepers(service) -> list[int]:
    """The processes `sleep` that a scripted service started, whatever became of their parents."""
    mark, found = f"TMPDIR={service.folder}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "comm").read_text() == "sleep\n" and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found
