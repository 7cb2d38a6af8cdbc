"""OpenAI's Python SDK takes every answer for one of its own."""

import json

import pytest

from harness import MODEL

openai = pytest.importorskip("openai", reason="openai: skipped, it is not installed")

TURNS = [{"role": "user", "content": "Write a function that adds two numbers"}]
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 24}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["add", "sub"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(worker):
    with openai.OpenAI(base_url=worker.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]


def test_chat_whole_and_as_a_stream(client):
    whole = client.chat.completions.create(messages=TURNS, **GREEDY)
    assert whole.choices[0].finish_reason in ("stop", "length") and whole.choices[0].message.role == "assistant"
    stream = client.chat.completions.create(
        messages=TURNS, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    used, last = whole.usage, chunks[-1]
    assert not last.choices and last.usage.completion_tokens == used.completion_tokens


def test_a_conversation_goes_on(client):
    answer = client.chat.completions.create(messages=TURNS, **GREEDY).choices[0].message
    more = [*TURNS, answer.model_dump(exclude_none=True), {"role": "user", "content": "And subtracts"}]
    assert client.chat.completions.create(messages=more, **GREEDY).choices[0].message.content


def test_completions_whole_and_as_a_stream(client):
    whole = client.completions.create(prompt="def add(a, b):", **GREEDY)
    stream = client.completions.create(prompt="def add(a, b):", stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == whole.choices[0].text


def test_a_required_tool_is_called_by_its_schema(client):
    asked = {**GREEDY, "max_tokens": 120, "messages": TURNS, "tools": [TOOL], "tool_choice": "required"}
    choice = client.chat.completions.create(**asked).choices[0]
    call = choice.message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    assert choice.finish_reason == "tool_calls" and call.function.name == "get_weather"
    assert arguments["city"] in ("Oslo", "Rome") and 1 <= arguments["days"] <= 9
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert streamed.function.arguments == call.function.arguments
    answer = {"role": "tool", "tool_call_id": call.id, "content": "Sunny"}
    turns = [*TURNS, choice.message.model_dump(exclude_none=True), answer]
    assert client.chat.completions.create(messages=turns, tools=[TOOL], **GREEDY).choices


def test_an_answer_obeys_its_schema(client):
    schema = {"type": "json_schema", "json_schema": {"name": "f", "schema": SCHEMA, "strict": True}}
    asked = {**GREEDY, "max_tokens": 120, "messages": TURNS}
    answer = json.loads(client.chat.completions.create(response_format=schema, **asked).choices[0].message.content)
    assert answer["name"] in ("add", "sub") and 0 <= answer["count"] <= 99 and len(answer) == 2


def test_logprobs(client):
    asked = {**GREEDY, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    content = client.chat.completions.create(messages=TURNS, **asked).choices[0].logprobs.content
    assert len(content) == 6
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs), "greedy takes the most probable"
        assert bytes(token.bytes).decode(errors="replace") == token.token
    legacy = client.completions.create(prompt="def add(a, b):", logprobs=2, **{**GREEDY, "max_tokens": 6})
    assert len(legacy.choices[0].logprobs.tokens) == 6


def test_several_choices_of_a_seed_are_the_same_again(client):
    asked = {**GREEDY, "temperature": 1, "seed": 7, "n": 3, "messages": TURNS}

    def texts():
        choices = client.chat.completions.create(**asked).choices
        assert sorted(choice.index for choice in choices) == [0, 1, 2]
        return [choice.message.content for choice in choices]

    first = texts()
    assert len(set(first)) > 1 and texts() == first


def test_a_stop_string_ends_the_text_and_is_no_part_of_it(client):
    text = client.chat.completions.create(messages=TURNS, **GREEDY).choices[0].message.content
    stop = text[8:11]
    choice = client.chat.completions.create(messages=TURNS, stop=[stop], **GREEDY).choices[0]
    assert choice.finish_reason == "stop" and choice.message.content == text[: text.index(stop)]


def test_responses_whole_and_as_a_stream(client):
    asked = {"model": MODEL, "input": TURNS[0]["content"], "temperature": 0, "max_output_tokens": 24}
    whole = client.responses.create(**asked)
    chat = client.chat.completions.create(messages=TURNS, **GREEDY).choices[0].message.content
    assert whole.output_text == chat
    with client.responses.stream(**asked) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == chat
    last = events[-1].response
    assert (last.output_text, last.usage.output_tokens) == (chat, whole.usage.output_tokens)


def test_errors_are_of_their_kind(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(messages=TURNS, **{**GREEDY, "model": "other"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(messages=TURNS, top_p=2, **GREEDY)
    assert wrong.value.param == "top_p"
