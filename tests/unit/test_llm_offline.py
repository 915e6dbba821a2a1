from __future__ import annotations

import subprocess
import sys

import aiohttp
import orjson
import pytest

from perdure.llm.offline import OfflineModel, embed
from perdure.llm.offline_arguments import fill
from perdure.llm.offline_rules import NOTICE, respond

ACTIVATE = {
    "type": "function",
    "function": {
        "name": "activate_line",
        "parameters": {"type": "object", "properties": {"customer": {"type": "string"}}, "required": ["customer"]},
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "properties": {"numbers": {"type": "array", "items": {"type": "number"}}},
            "required": ["numbers"],
        },
    },
}
SYSTEM = {"role": "system", "content": "You are bob.\nYour role: a pirate.\n"}


@pytest.fixture
async def offline():
    model = OfflineModel()
    await model.start()
    yield model
    await model.stop()


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


def user(text):
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    "text",
    [
        "activate line for Anna",
        "please ACTIVATE_LINE Anna.",
        "activate-line 'Anna'",
        'activate line {"customer": "Anna"}',
    ],
)
def test_a_tool_is_called_when_the_newest_user_message_names_it(text):
    said, calls = respond({"messages": [SYSTEM, user(text)], "tools": [ACTIVATE]})
    assert said == ""
    assert [(name, orjson.loads(arguments)) for name, arguments in calls] == [("activate_line", {"customer": "Anna"})]


def test_a_message_that_names_tools_several_times_calls_each_of_them():
    text = "activate line for Anna, activate line for Bob and then add 1 2.5"
    _, calls = respond({"messages": [user(text)], "tools": [ADD, ACTIVATE]})
    assert [(name, orjson.loads(said)) for name, said in calls] == [
        ("activate_line", {"customer": "Anna"}),
        ("activate_line", {"customer": "Bob"}),
        ("add", {"numbers": [1.0, 2.5]}),
    ]


def test_a_tool_is_not_called_for_an_older_message_nor_for_part_of_a_word():
    older = [user("activate line"), {"role": "assistant", "content": "no"}, user("thanks")]
    assert respond({"messages": older, "tools": [ACTIVATE]})[1] == []
    assert respond({"messages": [user("addition of 1 2")], "tools": [ADD]})[1] == []
    assert respond({"messages": [user("add 1 2")], "tools": [ADD], "tool_choice": "none"})[1] == []


def test_after_the_tool_results_it_answers_with_them():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    asked = [SYSTEM, user("add 1 2"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    said, calls = respond(
        {"messages": [*asked, {"role": "tool", "tool_call_id": "c1", "content": "3"}], "tools": [ADD]}
    )
    assert calls == []
    assert said == f"{NOTICE} As a pirate: add says 3."


def test_a_result_that_came_in_between_is_told_with_the_next_answer():
    call = {"id": "c1_end", "type": "function", "function": {"name": "activate_line", "arguments": "{}"}}
    told = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1_end", "content": "ok"},
    ]
    said, _ = respond(
        {"messages": [SYSTEM, user("hi"), {"role": "assistant", "content": "hi"}, *told, user("is it done?")]}
    )
    assert "As a pirate" in said
    assert "activate_line says ok" in said


def test_the_answer_quotes_the_role_or_else_the_first_line():
    assert "As a pirate, I heard" in respond({"messages": [SYSTEM, user("hi")]})[0]
    assert "As Be brief, I heard" in respond({"messages": [{"role": "system", "content": "Be brief."}, user("hi")]})[0]


def test_a_schema_is_filled_from_json_pairs_quotes_numbers_and_words():
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "count": {"type": "integer"},
            "size": {"enum": ["small", "large"]},
            "fast": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
            "inner": {"$ref": "#/$defs/Inner"},
        },
        "required": ["name", "count", "size", "inner"],
        "$defs": {"Inner": {"type": "object", "properties": {"note": {"type": "string"}}, "required": ["note"]}},
    }
    assert fill(schema, 'a large one, "Anna", 3, "hello" fast=yes') == {
        "name": "Anna", "count": 3, "size": "large", "fast": True, "inner": {"note": "hello"},
    }  # fmt: skip


async def test_it_says_on_every_surface_that_it_is_no_language_model(offline, http):
    chat = {"model": "x", "messages": [user("hi")]}
    answers = [
        await http.get(offline.url.removesuffix("/v1") + "/"),
        await http.get(f"{offline.url}/models"),
        await http.get(f"{offline.url}/models/offline"),
        await http.post(f"{offline.url}/chat/completions", json=chat),
        await http.post(f"{offline.url}/chat/completions", json={**chat, "stream": True}),
        await http.post(f"{offline.url}/embeddings", json={"input": "hi"}),
        await http.post(f"{offline.url}/embeddings", json={"input": 7}),
    ]
    for answer in answers:
        text = await answer.text()
        assert "not a language model" in text, text
        assert "not a language model" in answer.headers["X-Model-Notice"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not JSON"),
        (b"[]", "JSON object"),
        (b"{}", "messages"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": [{"role": "king", "content": "x"}]}', "messages[0].role"),
        (b'{"messages": [{"role": "tool", "tool_call_id": "x", "content": ""}]}', "tool_call_id"),
        (b'{"messages": [{"role": "user", "content": "x"}], "tools": [1]}', "tools"),
    ],
)
async def test_a_malformed_request_is_a_400_that_names_the_fault(offline, http, body, says):
    answer = await http.post(f"{offline.url}/chat/completions", data=body)
    assert answer.status == 400
    assert says in (await answer.json())["error"]["message"]


def test_texts_that_share_words_are_near_each_other():
    def near(one: str, other: str) -> float:
        return sum(a * b for a, b in zip(embed(one), embed(other), strict=True))

    assert embed("the same") == embed("the same")
    assert near("red apple pie", "apple pie recipe") > near("red apple pie", "nuclear submarine")


def test_a_taken_port_is_a_clear_error(offline_port_holder):
    done = subprocess.run(
        [sys.executable, "-m", "perdure.llm.offline", "--port", str(offline_port_holder)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "choose another --port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def offline_port_holder():
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]
