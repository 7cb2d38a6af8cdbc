"""Requests of several clients at once, and what became of each."""

import threading
import time
from dataclasses import dataclass

import requests

from harness import MODEL, Stream

TOKENS = 192


@dataclass
class Outcome:
    """What became of a request."""

    kind: str
    began: float
    ended: float
    status: int
    # Whether the answer is complete by its own words.
    is_whole: bool
    # What it is, where it is not complete.
    seen: str
    # Of a stream, what was asked, and the text that came.
    asked: dict
    text: str


def stream(url, prompt):
    asked = {"model": MODEL, "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "seed": 7}
    got = Stream(url, "/v1/completions", **asked)
    is_whole = got.is_done and got.finish_reason() == "length"
    return got.status, is_whole, f"{got.broken} {got.is_done} {got.events[-1:]}", asked, got.text()


def whole(url, prompt):
    body = {"model": MODEL, "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True}
    answer = requests.post(url + "/v1/completions", json=body, timeout=60)
    is_whole = answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == TOKENS
    return answer.status_code, is_whole, answer.text[:300], {}, ""


def generate(url, prompt):
    params = {"max_new_tokens": TOKENS, "ignore_eos": True}
    answer = requests.post(url + "/generate", json={"text": prompt, "sampling_params": params}, timeout=60)
    is_whole = answer.status_code == 200 and answer.json()["meta_info"]["completion_tokens"] == TOKENS
    return answer.status_code, is_whole, answer.text[:300], {}, ""


KINDS = {"stream": stream, "whole": whole, "generate": generate}


class Traffic:
    """Clients that each send one request after the other until this is left: kinds in turns, or streams; prompts all
    different."""

    def __init__(self, url, clients=9, streaming=0):
        self.url, self.outcomes, self.is_over = url, [], threading.Event()
        kinds = [list(KINDS)] * clients + [["stream"]] * streaming
        self.threads = [threading.Thread(target=self.client, args=client) for client in enumerate(kinds)]

    def client(self, index, kinds):
        count = 0
        while not self.is_over.is_set():
            kind = kinds[(index + count) % len(kinds)]
            prompt = f"# Client {index}, request {count}.\nclass C{index}_{count}:\n    def method(self):"
            began = time.monotonic()
            try:
                status, *rest = KINDS[kind](self.url, prompt)
            except (requests.RequestException, ValueError) as error:
                status, *rest = 0, False, repr(error), {}, ""
            self.outcomes.append(Outcome(kind, began, time.monotonic(), status, *rest))
            count += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        for thread in self.threads:
            thread.join()
