# SPDX-License-Identifier: Apache-2.0
"""The official openai client, unchanged: sync, async, streams, helpers, parse(), tools, errors."""
import asyncio
import json
from typing import Literal

import openai
import pydantic
import pytest

MESSAGES = [{"role": "user", "content": "Tell me about the sea"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "strict": True, "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 12},
                                     "unit": {"type": "string", "enum": ["C", "F"]}},
    "required": ["city", "unit"], "additionalProperties": False}}}


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=url, api_key="k", max_retries=0)


def test_models(client):
    assert [m.id for m in client.models.list()] == ["m"]
    assert client.models.retrieve("m").id == "m"
    with pytest.raises(openai.NotFoundError) as e:
        client.models.retrieve("other")
    assert e.value.code == "model_not_found"


def test_chat_whole_and_streamed_are_equal(client):
    whole = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=16, temperature=0)
    text, finish, usage, roles = "", [], None, []
    for chunk in client.chat.completions.create(model="m", messages=MESSAGES, max_completion_tokens=16,
                                                temperature=0, stream=True,
                                                stream_options={"include_usage": True}):
        if not chunk.choices:
            usage = chunk.usage
            continue
        delta = chunk.choices[0].delta
        text += delta.content or ""
        roles.append(delta.role)
        finish.append(chunk.choices[0].finish_reason)
    assert text == whole.choices[0].message.content
    assert roles[0] == "assistant" and not any(roles[1:])
    assert finish[-1] == whole.choices[0].finish_reason and not any(finish[:-1])
    assert usage.total_tokens == whole.usage.total_tokens
    assert whole.system_fingerprint.startswith("fp_")


def test_logprobs(client):
    c = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=4, temperature=0,
                                       logprobs=True, top_logprobs=3).choices[0]
    assert 1 <= len(c.logprobs.content) <= 4
    for token in c.logprobs.content:
        assert token.logprob == max(t.logprob for t in token.top_logprobs)
        assert len(token.top_logprobs) == 3 and bytes(token.bytes).decode(errors="replace")


def test_choices_and_seed(client):
    def texts(n):
        r = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=8, n=n, seed=11)
        return [c.message.content for c in r.choices]
    three = texts(3)
    assert len(three) == 3 and texts(2) == three[:2]


def test_async_streams_at_the_same_time(url):
    async def one(client, i):
        text = ""
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=12,
                                                      temperature=1, seed=i, stream=True)
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        return text

    async def all_of(n):
        client = openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0)
        return await asyncio.gather(*(one(client, i) for i in range(n)))

    together = asyncio.run(all_of(6))
    assert together == asyncio.run(all_of(6))


class Person(pydantic.BaseModel):
    name: str
    kind: Literal["cat", "dog"]
    lives: int
    tags: list[Literal["a", "b"]]


class Short(pydantic.BaseModel):
    kind: Literal["cat", "dog"]
    old: bool


def test_parse_gives_an_instance(client):
    for seed in range(3):
        try:
            r = client.chat.completions.parse(model="m", messages=MESSAGES, response_format=Person,
                                              seed=seed, max_tokens=300, temperature=0.7)
        except openai.LengthFinishReasonError:
            continue  # the small model went on and on; what it wrote was cut, and said to be
        assert isinstance(r.choices[0].message.parsed, Person)


def test_stream_helper(client):
    with client.chat.completions.stream(model="m", messages=MESSAGES, max_tokens=8) as stream:
        kinds = [event.type for event in stream]
        text = stream.current_completion_snapshot.choices[0].message.content
    assert "content.delta" in kinds and text


def test_async_parse_and_stream_helper(url):
    async def both():
        client = openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0)
        common = {"model": "m", "messages": MESSAGES, "seed": 3, "max_tokens": 300, "temperature": 0.7}
        parsed = await client.chat.completions.parse(response_format=Short, **common)
        async with client.chat.completions.stream(response_format=Short, **common) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_completion()
        return parsed.choices[0].message.parsed, kinds, final.choices[0].message.parsed

    whole, kinds, streamed = asyncio.run(both())
    assert isinstance(whole, Short) and whole == streamed and "content.done" in kinds


def test_responses_parse_and_stream_helper(client):
    common = {"model": "m", "input": "Tell me", "max_output_tokens": 200, "temperature": 0}
    whole = client.responses.parse(text_format=Short, **common)
    with client.responses.stream(text_format=Short, **common) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert isinstance(whole.output_parsed, Short) and final.output_parsed == whole.output_parsed
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"


def test_parallel_tool_calls_and_auto(client):
    other = {"type": "function", "function": {"name": "get_time", "strict": True, "parameters": {
        "type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"],
        "additionalProperties": False}}}
    r = client.chat.completions.create(model="m", messages=MESSAGES, tools=[TOOL, other], max_tokens=200, seed=2,
                                       tool_choice={"type": "function", "function": {"name": "get_time"}})
    calls = r.choices[0].message.tool_calls
    assert calls and all(c.function.name == "get_time" and json.loads(c.function.arguments)["zone"] in ("UTC", "CET")
                         for c in calls)
    assert len({c.id for c in calls}) == len(calls)
    r = client.chat.completions.create(model="m", messages=MESSAGES, tools=[TOOL, other], max_tokens=8)
    assert r.choices[0].finish_reason in ("length", "stop", "tool_calls")


def test_tools(client):
    r = client.chat.completions.create(model="m", messages=MESSAGES, tools=[TOOL], tool_choice="required",
                                       parallel_tool_calls=False, max_tokens=150, seed=1)
    call = r.choices[0].message.tool_calls[0]
    assert r.choices[0].finish_reason == "tool_calls" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["unit"] in ("C", "F")
    with client.chat.completions.stream(model="m", messages=MESSAGES, tools=[TOOL], tool_choice="required",
                                        parallel_tool_calls=False, max_tokens=150, seed=1) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert streamed.function.arguments == call.function.arguments
    again = MESSAGES + [{"role": "assistant", "tool_calls": [call.model_dump()]},
                        {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    assert client.chat.completions.create(model="m", messages=again, tools=[TOOL], tool_choice="none",
                                          max_tokens=4).choices[0].message.content


def test_completions(client):
    r = client.completions.create(model="m", prompt=["Once upon", "The sea"], max_tokens=0, echo=True,
                                  logprobs=1)
    assert [c.text for c in r.choices][1].endswith("The sea")
    assert r.choices[0].logprobs.token_logprobs[0] is None
    assert client.completions.create(model="m", prompt="x").usage.completion_tokens <= 16


def test_embeddings_float_and_base64_are_equal(client):
    a = client.embeddings.create(model="m", input=["the sea", "a ship"])  # base64 underneath
    b = client.embeddings.create(model="m", input=["the sea", "a ship"], encoding_format="float")
    for x, y in zip(a.data, b.data):
        assert max(abs(p - q) for p, q in zip(x.embedding, y.embedding)) < 1e-6
        assert abs(sum(p * p for p in x.embedding) - 1) < 1e-5


def test_responses(client):
    r = client.responses.create(model="m", input="Tell me", max_output_tokens=8, temperature=0)
    assert r.output_text and r.status == "incomplete"
    text = ""
    for event in client.responses.create(model="m", input="Tell me", max_output_tokens=8, temperature=0,
                                         stream=True):
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    assert text == r.output_text and last.type == "response.incomplete"
    tool = {"type": "function", **TOOL["function"]}
    r = client.responses.create(model="m", input="Tell me", tools=[tool], tool_choice="required",
                                parallel_tool_calls=False, max_output_tokens=150)
    assert r.output[0].type == "function_call" and json.loads(r.output[0].arguments)
    with pytest.raises(openai.BadRequestError) as e:
        client.responses.create(model="m", input="x", previous_response_id="resp_1")
    assert e.value.param == "previous_response_id"


@pytest.mark.parametrize("field,value", [
    ("temperature", -1), ("top_p", 1.5), ("stop", 5), ("logit_bias", {"x": 1}), ("max_tokens", 0),
    ("n", 1000), ("top_logprobs", 3), ("modalities", ["audio"]),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}})])
def test_errors_name_the_field(client, field, value):
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model="m", messages=MESSAGES, **{field: value})
    assert e.value.param == field and e.value.type == "invalid_request_error"


def test_unknown_fields_are_ignored_and_harmless_ones_listed(client):
    r = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=1, user="u",
                                       extra_body={"no_such_field": 1})
    assert r.crayon["ignored"] == ["user"] and r.crayon["route"] == "device"
