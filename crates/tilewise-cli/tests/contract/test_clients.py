"""Libraries that people build on take the server for the one they were made for."""

import asyncio
import json
import os
import subprocess
import sys
from typing import Literal

import pytest

from harness import MODEL, node

pytestmark = pytest.mark.needs("clients")

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
HELLO = [{"role": "user", "content": "How is the weather in Rome?"}]


def city():
    """A class of answers, for libraries that take one."""
    from pydantic import BaseModel

    class City(BaseModel):
        city: Literal["Oslo", "Rome"]

    return City


def is_city(name):
    return name in ("Oslo", "Rome")


def test_what_openai_python_parses_goes_back(worker):
    import openai

    asked = {"model": MODEL, "temperature": 0}
    with openai.OpenAI(base_url=worker.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        parse = client.chat.completions.parse
        first = parse(messages=HELLO, response_format=city(), max_tokens=60, **asked).choices[0].message
        again = parse(messages=[*HELLO, first, *HELLO], response_format=city(), max_tokens=60, **asked)
        assert is_city(first.parsed.city) and is_city(again.choices[0].message.parsed.city)
        turns, tool = list(HELLO), openai.pydantic_function_tool(city(), name="weather")
        for _ in range(3):
            more = {"tools": [tool], "tool_choice": "required", "max_tokens": 120}
            message = parse(messages=turns, **more, **asked).choices[0].message
            call = message.tool_calls[0]
            assert is_city(call.function.parsed_arguments.city)
            turns += [message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny"}]
        answer = client.responses.parse(input=HELLO, text_format=city(), max_output_tokens=60, **asked)
        items = [*HELLO, *answer.output, *HELLO]
        answer = client.responses.parse(input=items, text_format=city(), max_output_tokens=60, **asked)
        assert is_city(answer.output_parsed.city)
        items, tool = list(HELLO), {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
        for _ in range(3):
            more = {"tools": [tool], "tool_choice": "required", "max_output_tokens": 120}
            output = client.responses.create(input=items, **more, **asked).output
            call = next(item for item in output if item.type == "function_call")
            assert is_city(json.loads(call.arguments)["city"])
            items += [*output, {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"}]


def test_litellm(worker, monkeypatch):
    # The prices of models are in the package too: nothing is fetched.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    asked = {"api_key": "none", "messages": HELLO, "max_tokens": 8, "temperature": 0}
    openai = {"model": f"openai/{MODEL}", "api_base": worker.url + "/v1", **asked}
    chat = litellm.completion(**openai).choices[0].message.content
    assert chat
    anthropic = litellm.completion(model=f"anthropic/{MODEL}", api_base=worker.url, **asked)
    assert anthropic.choices[0].message.content == chat
    bridged = asyncio.run(litellm.anthropic.messages.acreate(**openai))
    assert bridged["content"][0]["text"]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**{**openai, "messages": [{"role": "user", "content": "hello there " * 4000}]})


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_langchain_openai(worker, responses):
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def weather(city: Literal["Oslo", "Rome"]) -> str:
        """The weather"""
        return "Sunny"

    model = ChatOpenAI(
        model=MODEL, base_url=worker.url + "/v1", api_key="none", temperature=0, max_tokens=120,
        use_responses_api=responses,
    )  # fmt: skip
    question = HumanMessage("How is the weather in Rome?")
    called = model.bind_tools([weather], tool_choice="required").invoke([question])
    call = called.tool_calls[0]
    assert call["name"] == "weather" and is_city(call["args"]["city"])
    answer = ToolMessage("Sunny", tool_call_id=call["id"])
    assert model.bind_tools([weather]).invoke([question, called, answer]).content
    assert is_city(model.with_structured_output(city()).invoke([question]).city)


def test_openai_agents_with_its_default_model_class(worker):
    from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_client, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    set_default_openai_client(AsyncOpenAI(base_url=worker.url + "/v1", api_key="none"))
    called = []

    @function_tool
    def weather(city: Literal["Oslo", "Rome"]) -> str:
        """The weather"""
        called.append(city)
        return "Sunny"

    settings = ModelSettings(temperature=0, tool_choice="required", max_tokens=120)
    agent = Agent(name="a", instructions="Be brief", model=MODEL, tools=[weather], model_settings=settings)
    assert Runner.run_sync(agent, HELLO[0]["content"], max_turns=4).final_output
    assert called and is_city(called[0])


def test_anthropic(worker):
    import anthropic

    asked = {"model": MODEL, "messages": HELLO, "max_tokens": 24, "extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=worker.url, api_key="none", max_retries=0, timeout=60) as client:
        whole = client.messages.create(system="Be brief", **asked)
        with client.messages.stream(system="Be brief", **asked) as stream:
            assert stream.get_final_message().content[0].text == whole.content[0].text
        assert client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens > 4
        tools = [{"name": "weather", "description": "The weather", "input_schema": CITY}]
        use = {"tools": tools, "tool_choice": {"type": "any"}}
        used = client.messages.create(**{**asked, "max_tokens": 120}, **use)
        call = used.content[-1]
        assert used.stop_reason == "tool_use" and is_city(call.input["city"])
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny"}
        turns = [*HELLO, {"role": "assistant", "content": used.content}, {"role": "user", "content": [result]}]
        assert client.messages.create(tools=tools, **{**asked, "messages": turns}).content
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(**{**asked, "model": "other"})


def test_ollama(worker):
    import ollama

    client = ollama.Client(host=worker.url)
    asked = {"model": MODEL, "messages": HELLO, "options": {"temperature": 0, "num_predict": 16}}
    whole = client.chat(**asked).message.content
    assert "".join(part.message.content for part in client.chat(stream=True, **asked)) == whole != ""
    assert is_city(json.loads(client.chat(format=CITY, model=MODEL, messages=HELLO).message.content)["city"])
    assert client.generate(model=MODEL, prompt="hello", options={"num_predict": 4}).response
    assert [model.model for model in client.list().models] == [MODEL] == [model.model for model in client.ps().models]
    assert client.show(MODEL).details.family == "qwen3"
    with pytest.raises(ollama.ResponseError):
        client.chat(model="other", messages=HELLO)


@pytest.mark.parametrize("name", ["OpenAIChatModel", "OpenAIResponsesModel"])
def test_pydantic_ai(worker, name):
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models import openai
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=worker.url + "/v1", api_key="none")
    model = getattr(openai, name)(MODEL, provider=provider)
    for output in [city(), NativeOutput(city())]:
        agent = Agent(model, output_type=output, model_settings={"temperature": 0, "max_tokens": 200})
        assert is_city(agent.run_sync("x").output.city)


def test_llm(worker, tmp_path):
    known = f"- model_id: demo\n  model_name: {MODEL}\n  api_base: {worker.url}/v1\n  api_key_name: none\n"
    (tmp_path / "extra-openai-models.yaml").write_text(known)
    command = [sys.executable, "-m", "llm", "-m", "demo", "-o", "max_tokens", "8", "-o", "temperature", "0", "hello"]
    variables = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


@pytest.mark.needs("node")
def test_the_ai_sdk_with_its_default_model(worker):
    node("--test", "clients.mjs", SERVER=worker.url, MODEL=MODEL)
