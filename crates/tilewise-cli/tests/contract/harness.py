"""Processes of the tests: servers, routers, and what can be asked of them."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import requests

BINARY = os.environ["TILEWISE"]
# Where `run` has installed what the scripts import.
NODE_HOME = pathlib.Path(__file__).parents[4] / "target/contract"
MODEL = "tilewise-demo"
# A busy machine loads the model slowly.
PATIENCE = 60


def free_port():
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(holds, what, patience=PATIENCE):
    """Asks until it holds; returns what it returned."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.1)
    raise AssertionError(f"in {patience} s: {what}")


class Process:
    """A program that runs, with what it writes in a file."""

    def __init__(self, command):
        self.log = tempfile.NamedTemporaryFile(prefix="contract-", suffix=".log")
        self.child = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)

    def said(self):
        """The end of what it wrote."""
        return pathlib.Path(self.log.name).read_text(errors="replace")[-4000:]

    def answers(self, url):
        """Whether a GET is answered with 200."""
        assert self.child.poll() is None, f"it ended with {self.child.returncode}: {self.said()}"
        try:
            return requests.get(url, timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def signal(self, number):
        self.child.send_signal(number)

    def wait(self, patience=PATIENCE):
        return self.child.wait(patience)

    def stop(self):
        """Ends it if it still runs."""
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Worker(Process):
    """`tilewise serve` with the embedded model."""

    def __init__(self, *more, port=None, kv_tokens=16384):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        sizes = ["--threads", "1", "--kv-tokens", str(kv_tokens)]
        super().__init__([BINARY, "serve", "--port", str(self.port), *sizes, *more])
        wait_until(lambda: self.answers(self.url + "/health"), "the server is ready")

    def load(self):
        return requests.get(self.url + "/v1/loads", timeout=5).json()["loads"][0]

    def running(self):
        return self.load()["num_running_reqs"]


class Router(Process):
    """One of the routers before workers, started as docs/scale.md says."""

    COMMANDS = {
        "sglang-router": ["-m", "sglang_router.launch_router"],
        "smg": ["-m", "smg", "launch", "--disable-tokenizer-autoload"],
    }

    def __init__(self, name, workers):
        port, metrics = free_port(), free_port()
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        command = [sys.executable, *self.COMMANDS[name], "--host", "127.0.0.1", "--port", str(port)]
        command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics)]
        command += ["--worker-urls", *(worker.url for worker in workers)]
        command += ["--policy", "cache_aware", "--health-check-interval-secs", "1"]
        super().__init__(command)
        wait_until(lambda: self.answers(self.url + "/readiness"), f"{name} is ready")
        wait_until(lambda: len(self.healthy()) == len(workers), f"{name} knows the workers")

    def healthy(self):
        """URLs of the workers that it sends requests to."""
        listed = requests.get(self.url + "/workers", timeout=5).json()["workers"]
        return {worker["url"] for worker in listed if worker["is_healthy"]}


def node(*words, **environment):
    """What a script says that must succeed."""
    variables = {**os.environ, **environment}
    done = subprocess.run(["node", *words], cwd=NODE_HOME, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ask(url, path, patience=PATIENCE, **body):
    """The answer to a POST, which must be 200."""
    answer = requests.post(url + path, json=body, timeout=patience)
    assert answer.status_code == 200, f"{path} {answer.status_code}: {answer.text[:500]}"
    return answer.json()


class Stream:
    """A stream as far as it came: its events, whether it was ended by `[DONE]`, and what broke it."""

    def __init__(self, url, path, patience=PATIENCE, **body):
        self.events, self.is_done, self.broken = [], False, None
        with requests.post(url + path, json={**body, "stream": True}, stream=True, timeout=patience) as answer:
            self.status = answer.status_code
            try:
                for line in answer.iter_lines():
                    self.take(line)
            except requests.RequestException as error:
                self.broken = repr(error)

    def take(self, line):
        if line == b"data: [DONE]":
            self.is_done = True
        elif line.startswith(b"data: "):
            self.events.append(json.loads(line.removeprefix(b"data: ")))

    def choices(self):
        return [choice for event in self.events for choice in event.get("choices", [])]

    def text(self):
        """Of one choice."""
        return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in self.choices())

    def finish_reason(self):
        reasons = [choice["finish_reason"] for choice in self.choices() if choice.get("finish_reason")]
        return reasons[-1] if reasons else None


TERM, STOP, KILL = signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL
