"""OpenAI's JavaScript SDK: openai.mjs says what of it."""

import pytest

from harness import MODEL, node


@pytest.mark.needs("node")
def test_the_javascript_sdk_takes_every_answer_for_its_own(worker):
    said = node("--test", "openai.mjs", SERVER=worker.url, MODEL=MODEL)
    assert "pass 8" in said and "fail 0" in said, said
