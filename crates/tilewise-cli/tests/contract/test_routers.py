"""Two workers behind each router: what docs/scale.md promises of them."""

import contextlib
import time

import pytest
import requests

from harness import KILL, MODEL, STOP, TERM, Router, Stream, Worker, ask, wait_until
from traffic import Traffic

ROUTERS = [pytest.param(name, marks=pytest.mark.needs(name)) for name in Router.COMMANDS]


def workers_behind(name):
    with Worker() as one, Worker() as two, Router(name, [one, two]) as router:
        yield router, [one, two]


@pytest.fixture(scope="module", params=ROUTERS)
def fleet(request):
    """A router and the workers behind it."""
    yield from workers_behind(request.param)


@pytest.fixture(params=ROUTERS)
def new_fleet(request):
    """One for a single test: routers remember for a minute who has failed."""
    yield from workers_behind(request.param)


def prefix(index):
    """A few hundred tokens that no other index begins with."""
    return f"# Module {index}.\n" + "".join(f"def f{index}_{n}(a, b):\n    return a + b * {n}\n" for n in range(20))


def test_workers_are_registered_and_their_load_is_told(fleet):
    router, workers = fleet
    assert router.healthy() == {worker.url for worker in workers}
    models = requests.get(router.url + "/v1/models", timeout=5).json()
    assert [model["id"] for model in models["data"]] == [MODEL]

    def told():
        listed = requests.get(router.url + "/get_loads", timeout=5).json()
        return {load["worker"] for load in listed.get("workers") or listed["loads"]}

    # A router asks its workers for their load now and then, one after the other.
    wait_until(lambda: told() == {worker.url for worker in workers}, "all loads are told")


def test_answers_come_through_whole_and_as_they_are_made(fleet):
    router, workers = fleet
    prompt, greedy = "def add(a, b):", {"model": MODEL, "max_tokens": 24, "temperature": 0}
    turns = [{"role": "user", "content": prompt}]
    said = ask(router.url, "/v1/chat/completions", messages=turns, **greedy)["choices"][0]["message"]["content"]
    continued = ask(router.url, "/v1/completions", prompt=prompt, **greedy)["choices"][0]["text"]
    params = {"max_new_tokens": 24, "temperature": 0}
    generated = ask(router.url, "/generate", text=prompt, sampling_params=params)["text"]
    assert said and continued == generated
    # What a router makes of an answer is what the worker said.
    direct = ask(workers[0].url, "/v1/chat/completions", messages=turns, **greedy)
    assert direct["choices"][0]["message"]["content"] == said

    chat = Stream(router.url, "/v1/chat/completions", messages=turns, **greedy)
    completion = Stream(router.url, "/v1/completions", prompt=prompt, **greedy)
    for stream, text in [(chat, said), (completion, continued)]:
        assert (stream.status, stream.is_done, stream.text()) == (200, True, text)
        assert len(stream.events) > 8, "it came in pieces"
    # A worker of SGLang tells all of the text each time.
    cumulative = Stream(router.url, "/generate", text=prompt, sampling_params=params)
    texts = [event["text"] for event in cumulative.events]
    assert cumulative.is_done and texts[-1] == generated and len(texts) > 8
    assert all(longer.startswith(shorter) for shorter, longer in zip(texts, texts[1:]))


def test_responses_come_through(fleet):
    router, _ = fleet
    answer = ask(router.url, "/v1/responses", model=MODEL, input="def add(a, b):", max_output_tokens=8)
    assert answer["output"][0]["content"][0]["text"]


def test_an_error_comes_through_as_it_is(fleet):
    router, _ = fleet
    body = {"model": MODEL, "prompt": "x", "max_tokens": 8, "temperature": 0, "top_p": 1, "logit_bias": {"99999": 1}}
    answer = requests.post(router.url + "/v1/completions", json=body, timeout=30)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logit_bias"), answer.text


def test_a_prefix_sticks_to_the_worker_that_has_it(fleet):
    router, _ = fleet
    requests.post(router.url + "/flush_cache", timeout=30).raise_for_status()
    for index in range(8):
        cached = []
        for tail in ["one", "two", "three"]:
            body = {"prompt": prefix(index) + f"# {tail}\n", "model": MODEL, "max_tokens": 4, "temperature": 0}
            usage = ask(router.url, "/v1/completions", **body)["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"])
        # By chance, all sixteen would be sent to the right one of two once in 65536 times.
        assert cached[0] < 0.2 and min(cached[1:]) > 0.8, (index, cached)


def test_a_flush_reaches_every_worker(fleet):
    router, workers = fleet

    def cached(worker):
        usage = ask(worker.url, "/v1/completions", prompt=prefix(100), max_tokens=1)["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    for worker in workers:
        cached(worker)
        assert cached(worker) > 200
    requests.post(router.url + "/flush_cache", timeout=30).raise_for_status()
    assert [cached(worker) for worker in workers] == [0, 0]


def busiest(workers, running):
    """A worker with so many running requests, once there is one."""
    return wait_until(lambda: next((worker for worker in workers if worker.running() >= running), None), "it is busy")


def test_a_killed_worker_breaks_only_streams_that_it_had_begun_and_these_go_on_elsewhere(new_fleet):
    router, workers = new_fleet
    # So many streams that the one that is killed has begun some.
    with Traffic(router.url, streaming=6) as traffic:
        time.sleep(1)
        victim = busiest(workers, 6)
        # Stopped first, so that what it has running is still running when it dies.
        victim.signal(STOP)
        time.sleep(0.3)
        victim.signal(KILL)
        killed = time.monotonic()
        victim.wait()
        wait_until(lambda: victim.url not in router.healthy(), f"{router.name} has seen it")
        time.sleep(2)
    broken = [outcome for outcome in traffic.outcomes if not outcome.is_whole]
    for outcome in broken:
        # Its first bytes had reached the client, so that nobody could begin it again in secret. It does not look complete.
        assert outcome.kind == "stream" and outcome.status == 200, outcome
        assert outcome.began < killed and outcome.ended < killed + 5, (outcome, killed)
        # Asked again, of the worker that is left, it goes on from what had come: nothing is lost.
        again = Stream(router.url, "/v1/completions", **outcome.asked)
        assert again.is_done and again.finish_reason() == "length"
        assert again.text().startswith(outcome.text), (outcome.text, again.text())
    taken_up = sum(len(outcome.text) for outcome in broken)
    assert taken_up > 0, "no stream had begun: nothing was shown"
    print(f"{router.name}: {len(traffic.outcomes)} requests, {len(broken)} broken streams, taken up after {taken_up} characters")
    kinds = {outcome.kind for outcome in traffic.outcomes if outcome.is_whole and outcome.ended > killed}
    assert kinds == {"stream", "whole", "generate"}, "all are served by the worker that is left"
    with Worker(port=victim.port):
        wait_until(lambda: router.healthy() == {worker.url for worker in workers}, "the new one is taken in")


def test_a_worker_that_drains_fails_nobody(new_fleet):
    router, workers = new_fleet
    with Traffic(router.url) as traffic:
        time.sleep(1)
        leaving = busiest(workers, 3)
        leaving.signal(TERM)
        told = time.monotonic()
        assert leaving.wait() == 0, leaving.said()
        time.sleep(2)
    failed = [outcome for outcome in traffic.outcomes if not outcome.is_whole]
    assert not failed, failed
    assert sum(outcome.ended > told for outcome in traffic.outcomes) > 9


@contextlib.contextmanager
def full(worker, room):
    """Keeps a worker busy with as many completions as it has room for."""
    body = {"prompt": "def add(a, b):", "n": room, "max_tokens": 900, "ignore_eos": True, "stream": True}
    with requests.post(worker.url + "/v1/completions", json=body, stream=True, timeout=60):
        wait_until(lambda: worker.running() == room, "it is full")
        yield


@pytest.fixture(params=ROUTERS)
def small_fleet(request):
    """A router before workers that have room for eight completions each."""
    small = ["--max-requests", "8"]
    with Worker(*small) as one, Worker(*small) as two, Router(request.param, [one, two]) as router:
        yield router, [one, two]


def test_what_a_full_worker_refuses_is_done_by_another_or_told(small_fleet):
    router, (one, two) = small_fleet

    def asked(url, index):
        body = {"model": MODEL, "prompt": prefix(index), "max_tokens": 4, "temperature": 0}
        return requests.post(url + "/v1/completions", json=body, timeout=60)

    def is_told(answer):
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1, answer.text
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"

    with full(one, 8):
        is_told(asked(one.url, 0))
        answers = [asked(router.url, index) for index in range(8)]
        refused = [answer for answer in answers if answer.status_code != 200]
        print(f"{router.name}: {len(refused)} of {len(answers)} refused while one of two workers is full")
        # One replays what was refused elsewhere; the other does so for some and learns to leave the full one alone.
        assert len(refused) < (1 if router.name == "smg" else len(answers))
        for answer in refused:
            is_told(answer)
        with full(two, 8):
            is_told(asked(router.url, 8))
            assert one.running() == two.running() == 8, "both were full all the time"
    wait_until(lambda: asked(router.url, 9).status_code == 200, "there is room again")
