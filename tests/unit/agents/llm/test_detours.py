"""What langchain-openai does where we go past it: a test that fails here shows a detour that is no longer needed."""

from __future__ import annotations

import json

import openai
import pytest
from langchain_core.messages import convert_to_messages
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.json import parse_json_markdown
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from agents.llm.answers import read_answer, strict_schema
from agents.llm.exchange import ANSWER_TOOL
from agents.schemas import Planned
from tests.support.model_server import ModelServer
from tests.support.scripted_endpoint import GOOD, LIST_POLICIES, QUESTION, Choice, list_policies

CUT = {"content": '{"policy": "fi', "finish_reason": "length"}
FILTERED = {"content": "I", "finish_reason": "content_filter"}
BROKEN_CALL = {"tool_calls": [{"name": "list_policies", "arguments": "{not json"}]}
TOOL = list_policies([]).schema()
LOOSE = {"type": "function", "function": {**TOOL["function"], "strict": False}}


def chat(server: ModelServer, timeout: float = 10) -> ChatOpenAI:
    """The client without any detour."""
    url, key = server.url, SecretStr("none")
    return ChatOpenAI(
        model="small", base_url=url, api_key=key, timeout=timeout, max_retries=0, http_socket_options=(), cache=False
    )


# --- the schema as `extra_body` -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "raised"),
    [
        (CUT, openai.LengthFinishReasonError),
        (FILTERED, openai.ContentFilterFinishReasonError),
        (BROKEN_CALL, json.JSONDecodeError),
    ],
)
def test_response_format_loses_answers_that_were_paid_for(turn, raised):
    schema, strict = strict_schema(Choice)
    form = {"type": "json_schema", "json_schema": {"name": ANSWER_TOOL, "schema": schema, "strict": strict}}
    with ModelServer([turn, turn]) as server:
        with pytest.raises(raised):
            chat(server).bind(tools=[TOOL], response_format=form).invoke(QUESTION)
        kept = chat(server).bind(tools=[TOOL], extra_body={"response_format": form}).invoke(QUESTION)
    assert kept.usage_metadata["total_tokens"] > 0
    assert [body["response_format"] for body in server.chats] == [form, form], "both ask the same"


def test_response_format_sends_no_tool_that_is_not_strict():
    form = {"type": "json_schema", "json_schema": {"name": ANSWER_TOOL, "schema": {}, "strict": False}}
    with ModelServer([GOOD]) as server:
        with pytest.raises(ValueError, match="is not strict"):
            chat(server).bind(tools=[LOOSE], response_format=form).invoke(QUESTION)
        assert server.chats == []


def test_structured_output_loses_them_too_or_forbids_tools():
    with ModelServer([CUT, GOOD]) as server:
        with pytest.raises(openai.LengthFinishReasonError):
            chat(server).with_structured_output(Choice, include_raw=True, method="json_schema").invoke(QUESTION)
        chat(server).with_structured_output(Choice, include_raw=True, method="function_calling").invoke(QUESTION)
    assert server.chats[1]["tool_choice"]["function"]["name"] == "Choice"


# --- messages, schemas, answers -------------------------------------------------------------------------------------


def test_calls_whose_arguments_are_no_json_cannot_be_sent_back_as_they_came():
    call = {"id": "1", "type": "function", "function": {"name": "list_policies", "arguments": "{not json"}}
    with pytest.raises(json.JSONDecodeError):
        convert_to_messages([{"role": "assistant", "content": "", "tool_calls": [call]}])


@pytest.mark.parametrize(
    "convert", [lambda model: convert_to_openai_tool(model, strict=True), openai.pydantic_function_tool]
)
def test_strict_schemas_of_the_libraries_hold_what_strict_endpoints_refuse(convert):
    theirs = json.dumps(convert(Planned))
    ours, strict = strict_schema(Planned)
    assert strict
    for refused in ('"default":', '"minLength":', '"minProperties":'):
        assert refused in theirs
        assert refused not in json.dumps(ours)


def test_json_parser_completes_an_answer_that_was_cut():
    assert parse_json_markdown('{"policy": "fi') == {"policy": "fi"}
    assert read_answer('{"policy": "fi', Choice).value is None


# --- the bounded client ---------------------------------------------------------------------------------------------


def test_time_out_is_for_each_silence_only():
    with ModelServer([{**LIST_POLICIES, "drip_s": 0.003}]) as server:
        assert chat(server, timeout=0.3).invoke(QUESTION).tool_calls
