# SPDX-License-Identifier: Apache-2.0
"""anthropic, ollama, langchain-openai and litellm, unchanged."""
import asyncio
import json

import anthropic
import litellm
import ollama
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

ASK = [{"role": "user", "content": "Tell me about the sea"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
          "required": ["city"], "additionalProperties": False}


def test_anthropic(host):
    client = anthropic.Anthropic(base_url=host, api_key="k", max_retries=0)
    whole = client.messages.create(model="m", max_tokens=8, messages=ASK, system="Be brief")
    assert whole.stop_reason == "max_tokens" and whole.content[0].type == "text"
    with client.messages.stream(model="m", max_tokens=8, messages=ASK, system="Be brief") as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    tool = {"name": "get_weather", "input_schema": SCHEMA}
    r = client.messages.create(model="m", max_tokens=120, messages=ASK, tools=[tool],
                               tool_choice={"type": "tool", "name": "get_weather"})
    assert r.stop_reason == "tool_use" and set(r.content[0].input) == {"city"}
    with client.messages.stream(model="m", max_tokens=120, messages=ASK, tools=[tool],
                                tool_choice={"type": "tool", "name": "get_weather"}) as stream:
        for _ in stream:
            pass
        assert stream.get_final_message().content[0].input == r.content[0].input
    assert client.messages.count_tokens(model="m", messages=ASK).input_tokens > 5
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="other", max_tokens=8, messages=ASK)


def test_ollama(host):
    client = ollama.Client(host=host)
    assert [m.model for m in client.list().models] == ["m"]
    assert client.show("m").details.format == "gguf"
    options = {"temperature": 0, "num_predict": 8}
    whole = client.chat("m", messages=ASK, options=options)
    pieces = list(client.chat("m", messages=ASK, options=options, stream=True))
    assert whole.message.content == "".join(p.message.content for p in pieces)
    assert pieces[-1].done and pieces[-1].done_reason == "length" and pieces[-1].eval_count == 8
    assert client.generate("m", "Once upon", options=options).response
    raw = client.generate("m", "Once upon", raw=True, options=options)
    assert raw.response != whole.message.content
    r = client.chat("m", messages=ASK, format=SCHEMA, options={"num_predict": 80})
    assert set(json.loads(r.message.content)) == {"city"}
    assert len(client.embed("m", ["a", "b"]).embeddings) == 2
    with pytest.raises(ollama.ResponseError):
        client.chat("other", messages=ASK)


def test_ollama_async_and_tools(host):
    async def ask():
        client = ollama.AsyncClient(host=host)
        options = {"temperature": 0, "num_predict": 8}
        whole = await client.generate("m", "Once upon", options=options)
        pieces = [p.response async for p in await client.generate("m", "Once upon", options=options, stream=True)]
        return whole.response, "".join(pieces)

    whole, pieces = asyncio.run(ask())
    assert whole == pieces
    tool = {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": SCHEMA}}
    r = ollama.Client(host=host).chat("m", messages=ASK, tools=[tool], options={"num_predict": 16})
    for call in r.message.tool_calls or []:
        assert call.function.name == "get_weather"


def test_langchain_async_and_batch(url):
    llm = ChatOpenAI(model="m", base_url=url, api_key="k", max_tokens=8, temperature=0, max_retries=0)

    async def stream():
        return "".join([c.content async for c in llm.astream("Tell me about the sea")])

    whole = [m.content for m in llm.batch(["Tell me about the sea", "A ship"])]
    assert asyncio.run(stream()) == whole[0] and whole[1]


def test_langchain(url):
    llm = ChatOpenAI(model="m", base_url=url, api_key="k", max_tokens=8, temperature=0, max_retries=0)
    whole = llm.invoke("Tell me about the sea").content
    assert "".join(c.content for c in llm.stream("Tell me about the sea")) == whole
    strict = ChatOpenAI(model="m", base_url=url, api_key="k", max_tokens=120, max_retries=0)
    answer = strict.with_structured_output({"title": "answer", "description": "a city", **SCHEMA},
                                           method="json_schema", strict=True).invoke("Where?")
    assert set(answer) == {"city"}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
    call = strict.bind_tools([tool], tool_choice="get_weather").invoke("Where?").tool_calls[0]
    assert call["name"] == "get_weather" and set(call["args"]) == {"city"}
    vectors = OpenAIEmbeddings(model="m", base_url=url, api_key="k",
                               check_embedding_ctx_length=False).embed_documents(["a", "b"])
    assert len(vectors) == 2


def test_litellm(url):
    common = {"model": "openai/m", "api_base": url, "api_key": "k", "messages": ASK, "max_tokens": 8,
              "temperature": 0, "num_retries": 0}
    whole = litellm.completion(**common).choices[0].message.content
    pieces = litellm.completion(**common, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == whole
    assert asyncio.run(litellm.acompletion(**common)).choices[0].message.content == whole
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
    r = litellm.completion(**(common | {"max_tokens": 120}), tools=[tool], tool_choice="required")
    assert set(json.loads(r.choices[0].message.tool_calls[0].function.arguments)) == {"city"}
    r = litellm.completion(**(common | {"max_tokens": 120}), response_format={
        "type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}})
    assert set(json.loads(r.choices[0].message.content)) == {"city"}
    v = litellm.embedding(model="openai/m", api_base=url, api_key="k", input=["a", "b"])
    assert len(v.data) == 2
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**(common | {"model": "openai/other"}))
