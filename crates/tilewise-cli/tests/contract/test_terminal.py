"""`tilewise chat` in a terminal."""

import os
import pty
import select
import signal
import time

from harness import BINARY, PATIENCE


class Terminal:
    """A program in a terminal of its own, what it wrote, and how much of that was looked at."""

    def __init__(self, command, **environment):
        self.said = ""
        self.seen = 0
        self.child, self.file = pty.fork()
        if self.child == 0:
            os.execve(command[0], command, {**os.environ, "TERM": "xterm", **environment})

    def type(self, text):
        os.write(self.file, text.encode())

    def wait_for(self, words):
        """Reads on until these words come after those of the last call."""
        end = time.monotonic() + PATIENCE
        while (found := self.said.find(words, self.seen)) < 0:
            assert time.monotonic() < end, f"{words!r} is not in {self.said[self.seen:]!r}"
            if select.select([self.file], [], [], 0.1)[0]:
                try:
                    self.said += os.read(self.file, 4096).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"it ended: {self.said[-2000:]!r}") from None
        self.seen = found + len(words)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        os.close(self.file)


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(tmp_path):
    for _ in range(4):
        home = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
        with Terminal([BINARY, "chat", "--threads", "1"], **home) as terminal:
            terminal.wait_for("/help says")
            for turn in ["Write a class for a binary tree", "Write another one"]:
                terminal.wait_for("> ")
                terminal.type(turn + "\r")
                terminal.wait_for("def ")
                terminal.type("\x03")
                terminal.wait_for("the answer was stopped")
            terminal.wait_for("> ")
            terminal.type("\x04")
