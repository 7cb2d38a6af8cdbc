"""Workers that share cached prefixes through a RESP server."""

import subprocess

import pytest
import requests

from harness import Process, Worker, ask, free_port, wait_until

pytestmark = pytest.mark.needs("redis-server")

PROMPT = "".join(f"def shared_{n}(a, b):\n    return a * {n} - b\n" for n in range(30))


@pytest.fixture
def redis(tmp_path):
    """A RESP server, and a way to ask it."""
    port = str(free_port())
    places = ["--bind", "127.0.0.1", "--port", port, "--dir", str(tmp_path)]

    def cli(*words):
        asked = subprocess.run(["redis-cli", "-p", port, *words], capture_output=True, text=True)
        return asked.stdout

    with Process(["redis-server", *places, "--save", "", "--appendonly", "no"]):
        wait_until(lambda: cli("ping") == "PONG\n", "the RESP server is ready")
        yield f"redis://127.0.0.1:{port}", cli


def generate(worker):
    params = {"max_new_tokens": 8, "temperature": 0}
    answer = ask(worker.url, "/generate", text=PROMPT, sampling_params=params)
    return answer["meta_info"]["cached_tokens"], answer["text"]


def hits(cli):
    stats = dict(line.split(":", 1) for line in cli("info", "stats").split() if ":" in line)
    return int(stats["keyspace_hits"])


def test_a_prefix_that_one_worker_computed_is_found_by_the_other(redis):
    address, cli = redis
    tier = ["--resp-cache", address]
    with Worker(*tier) as one, Worker(*tier) as other, Worker() as alone:
        assert generate(one)[0] == 0
        wait_until(lambda: cli("dbsize").strip() not in ("", "0"), "the prefix is in the tier")
        before = hits(cli)
        cached, text = generate(other)
        # This one never saw the prompt: what it had cached came from the tier, which counts that it was read.
        assert cached >= 256 and hits(cli) > before, (cached, before, hits(cli))
        # One without the tier computes all of it, to the same text.
        assert generate(alone) == (0, text)
        assert generate(one)[1] == text


def test_a_worker_serves_on_when_the_tier_is_gone(redis):
    address, cli = redis
    with Worker("--resp-cache", address) as worker:
        _, text = generate(worker)
        cli("shutdown", "nosave")
        requests.post(worker.url + "/flush_cache", timeout=30).raise_for_status()
        assert generate(worker) == (0, text), "it is computed again"
        assert generate(worker)[0] > 256, "what is on the device is found without the tier"
