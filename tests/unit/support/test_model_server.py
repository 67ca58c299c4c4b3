"""The scripted endpoint itself: what clients of the tests and demos rely on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.support.model_server import ModelServer
from tests.support.paths import ROOT

MESSAGES = [{"role": "user", "content": "hello"}]


def post(url: str, body: dict, key: str = "") -> bytes:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def chat(server: ModelServer, **more) -> dict:
    return json.loads(post(f"{server.url}/chat/completions", {"model": "m", "messages": MESSAGES, **more}))


def test_script_is_played_in_order_and_ends():
    with ModelServer([{"content": "one"}, {"content": {"two": 2}}]) as server:
        assert chat(server)["choices"][0]["message"]["content"] == "one"
        assert chat(server)["choices"][0]["message"]["content"] == '{"two": 2}'
        with pytest.raises(urllib.error.HTTPError) as caught:
            chat(server)
        assert (caught.value.code, "no more turns" in caught.value.read().decode()) == (410, True)
        caught.value.close()


def test_function_answers_by_the_request():
    with ModelServer(lambda body: {"content": body["messages"][0]["content"].upper()}) as server:
        assert chat(server)["choices"][0]["message"]["content"] == "HELLO"


def test_stream_carries_the_same_answer():
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    turn = {"content": "a long answer in several pieces", "tool_calls": [{"name": "t", "arguments": {"a": 1}}]}
    with ModelServer([turn]) as server:
        client = ChatOpenAI(model="m", base_url=server.url, api_key=SecretStr("k"), stream_usage=True)
        pieces = list(client.stream("hello"))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert whole.content == turn["content"]
    assert whole.tool_calls[0]["args"] == {"a": 1}
    assert whole.usage_metadata["output_tokens"] > 0
    assert len([piece for piece in pieces if piece.content]) == 2


def test_embeddings_put_like_texts_near():
    with ModelServer([]) as server:
        body = {"model": "e", "input": ["many short build tasks", "short build tasks", "one network server"]}
        answer = json.loads(post(f"{server.url}/embeddings", body))
    first, near, far = (entry["embedding"] for entry in answer["data"])

    def likeness(one, other):
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert likeness(first, near) > 0.7 > likeness(first, far)
    assert likeness(first, first) == pytest.approx(1)


def test_key_is_asked_for():
    with ModelServer([{"content": "x"}], api_key="right") as server:
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(f"{server.url}/chat/completions", {"model": "m", "messages": MESSAGES}, "wrong")
        caught.value.close()
        assert caught.value.code == 401
        assert post(f"{server.url}/chat/completions", {"model": "m", "messages": MESSAGES}, "right")
    assert [seen.headers["authorization"] for seen in server.requests] == ["Bearer wrong", "Bearer right"]


def test_doctor_is_content_with_it(tmp_path):
    from schedagent.core.settings import Settings
    from schedagent.setup import doctor

    with ModelServer([], api_key="right") as server:
        settings = Settings(tmp_path, tmp_path, model_base_url=server.url, model_name="m", model_api_key="right")
        assert doctor._model(settings).status == "ok"


def test_it_runs_as_a_program(tmp_path):
    script = tmp_path / "script.json"
    script.write_text('[{"content": "from a file"}]')
    root = ROOT
    command = [sys.executable, "-m", "tests.support.model_server", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as program:
        url = program.stdout.readline().strip()
        answer = json.loads(post(f"{url}/chat/completions", {"model": "m", "messages": MESSAGES}))
        program.send_signal(signal.SIGINT)
        assert program.wait(10) == 0
    assert answer["choices"][0]["message"]["content"] == "from a file"
