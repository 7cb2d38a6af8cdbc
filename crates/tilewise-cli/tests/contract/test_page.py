"""The page at `/` in a browser: page.mjs says what of it."""

import pytest

from harness import MODEL, NODE_HOME, Worker, node


@pytest.mark.needs("node", "chromium")
def test_the_page_chats_and_shows_what_goes_on():
    with Worker() as worker:
        print(node("page.mjs", SERVER=worker.url, MODEL=MODEL, SCREENSHOT=str(NODE_HOME / "page.png")))
