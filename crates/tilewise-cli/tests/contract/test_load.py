"""Many streams at once for a while: none fails, and the server holds no more afterwards than before.

What is generated per second is told beside what the engine does in process with as many sequences; it is no test, since
machines are busy with other things too.
"""

import asyncio
import json
import os
import pathlib
import random
import subprocess
import time
from urllib.parse import urlsplit

import pytest

from harness import BINARY, Worker, wait_until

INPUT, OUTPUT = 32, 128
MEBIBYTE = 1 << 20


def request(host, ids):
    body = {"prompt": ids, "max_tokens": OUTPUT, "ignore_eos": True, "stream": True}
    body = json.dumps({**body, "stream_options": {"include_usage": True}})
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


async def one_stream(reader, writer, host):
    """A stream to its end. Bytes are only searched, so that the client takes little of the machine from the server."""
    writer.write(request(host, [random.randrange(1, 4000) for _ in range(INPUT)]))
    answer = b""
    while not answer.endswith(b"\r\n0\r\n\r\n"):
        more = await asyncio.wait_for(reader.read(1 << 16), 120)
        assert more, f"the connection ended: {answer[-500:]}"
        answer += more
    assert answer.startswith(b"HTTP/1.1 200"), answer[:500]
    assert b"data: [DONE]" in answer and f'"completion_tokens":{OUTPUT}'.encode() in answer, answer[-500:]


async def client(worker, end, least):
    """Streams one after the other on a connection, `least` and until `end`; how many."""
    host = urlsplit(worker.url).netloc
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    count = 0
    while count < least or time.monotonic() < end:
        await one_stream(reader, writer, host)
        count += 1
    writer.close()
    await writer.wait_closed()
    return count


async def clients(worker, streams, end, least):
    return sum(await asyncio.gather(*(client(worker, end, least) for _ in range(streams))))


def held(worker):
    """File descriptors, bytes of memory, and tokens in pages that sequences hold, once nothing runs."""
    wait_until(lambda: worker.running() == 0 and worker.load()["num_waiting_reqs"] == 0, "nothing runs")
    process = pathlib.Path(f"/proc/{worker.child.pid}")
    # The connection that asked is closed a moment later.
    time.sleep(1)
    files = len(list((process / "fd").iterdir()))
    memory = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return files, memory, worker.load()["num_used_tokens"]


def in_process(sizes, streams):
    """Tokens per second of the engine alone."""
    trace = ["--num-requests", str(2 * streams), "--prefix-len", "0", "--input-len", str(INPUT)]
    command = [BINARY, "bench-serving-offline", *trace, "--output-len", str(OUTPUT), *sizes, "--format", "json"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return report["output_throughput"]


@pytest.mark.parametrize(
    ("streams", "seconds"), [pytest.param(32, 15, id="short"), pytest.param(256, 300, id="long", marks=pytest.mark.long)]
)
def test_streams_leave_nothing_behind(streams, seconds):
    tokens = streams * (INPUT + OUTPUT) * 5 // 4
    running = ["--max-running", str(streams)]
    with Worker(*running, kv_tokens=tokens) as worker:
        # All pages have been written once after this, and what is kept per connection is there.
        asyncio.run(clients(worker, streams, 0, 2))
        files, memory, pages = held(worker)
        began = time.monotonic()
        count = asyncio.run(clients(worker, streams, began + seconds, 1))
        served = count * OUTPUT / (time.monotonic() - began)
        files_after, memory_after, pages_after = held(worker)
        assert (files_after, pages_after) == (files, pages) and pages == 0
        assert memory_after < memory + 16 * MEBIBYTE, f"{memory} bytes became {memory_after}"
    alone = in_process([*running, "--threads", "1", "--kv-tokens", str(tokens)], streams)
    print(
        f"{streams} streams for {seconds} s: {count} requests, none failed; {served:.0f} tokens per second, "
        f"in process {alone:.0f}, ratio {served / alone:.2f}; memory {memory / MEBIBYTE:.1f} MiB, "
        f"then {memory_after / MEBIBYTE:.1f} MiB; {files} files, then {files_after}"
    )
