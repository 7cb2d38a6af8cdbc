"""Requests made at random from /openapi.json are answered as it says, and never by a fault of the server."""

import re
import subprocess
import sys

import pytest

from harness import Worker

CHECKS = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]


@pytest.mark.needs("schemathesis")
def test_the_server_does_what_its_schema_says(tmp_path):
    # A small cache makes for short texts: what is asked for at random seldom says how long it may be. It may ask for many.
    with Worker("--max-requests", "128", kv_tokens=256) as worker:
        command = [sys.executable, "-m", "schemathesis.cli", "run", worker.url + "/openapi.json"]
        command += ["--checks", ",".join(CHECKS), "--max-examples", "10", "--seed", "1", "--no-color"]
        command += ["--request-timeout", "60"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        print(done.stdout[-1200:])
        assert done.returncode == 0, done.stdout[-12000:] + done.stderr
        # Those of which nearly all bodies were refused: the description says less than the server asks for. There are no
        # embeddings whatever the body.
        refused = set(re.findall(r"^  - (POST \S+)$", done.stdout, re.MULTILINE))
        assert refused <= {"POST /v1/embeddings"}, refused
        assert worker.running() == 0
