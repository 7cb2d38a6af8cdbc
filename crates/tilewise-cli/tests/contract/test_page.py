"""The page at `/` in a browser: the scripts say what of it."""

import pytest

from harness import MODEL, NODE_HOME, Worker, node


@pytest.mark.needs("node", "chromium")
@pytest.mark.parametrize("key", ["", "a-key"])
def test_the_page_chats_and_shows_what_goes_on(key):
    with Worker(*(["--api-key", key] if key else [])) as worker:
        print(node("page.mjs", SERVER=worker.url, MODEL=MODEL, KEY=key, SCREENSHOT=str(NODE_HOME / "page.png")))


@pytest.mark.needs("node", "chromium")
def test_a_chat_is_held_as_its_reader_wants():
    with Worker() as worker:
        print(node("page_chat.mjs", SERVER=worker.url, SCREENSHOTS=str(NODE_HOME)))
