"""A cheap client of many streams, in a process of its own: raw sockets, and only what must be read of the answers.

It reads one JSON object from its standard input and prints one at its end. With `streams`, so many are kept in flight for
`refill_s` seconds and then read to their ends; with `arrivals`, each request is sent at its own second, come what may.
Tokens are counted by the entries' ids, which are dense, so that it does not matter how many share one event.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ID = re.compile(rb"\nid: \d+-(\d+)\n")
TEXT = re.compile(rb'"text":"([^"]*)"')
USAGE = re.compile(rb'"completion_tokens":(\d+)')
DONE, END = b"\ndata: [DONE]", b"0\r\n\r\n"
BINS_PER_S = 10
LONGEST_ANSWER_S = 120.0


class Load:
    """What all streams share: the requests that are left, and what was counted."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.begin = time.monotonic()
        self.bins: Counter[int] = Counter()
        self.first_s: list[float] = []
        self.counts = dict.fromkeys(("sent", "done", "tokens", "errors", "lost", "doubled"), 0)
        self.last_s = 0.0
        self.example = ""
        self._bodies: Iterator[str] = iter(order["bodies"])

    def now(self) -> float:
        """Seconds since the begin."""
        return time.monotonic() - self.begin

    def request(self) -> tuple[bytes, int] | None:
        """The next one and the tokens it asks for; None once no more are to be sent."""
        if "refill_s" in self.order and self.now() >= self.order["refill_s"]:
            return None
        body = next(self._bodies, None)
        if body is None:
            return None
        self.counts["sent"] += 1
        head = f"POST {self.order['path']} HTTP/1.1\r\nHost: pool\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode(), json.loads(body)["max_tokens"]

    def fail(self, what: str) -> None:
        """A request that came to nothing."""
        self.counts["errors"] += 1
        self.example = self.example or what

    def result(self) -> dict[str, Any]:
        """All of it."""
        return {
            "bins": self.bins, "first_s": self.first_s, "last_s": self.last_s, "cpu_s": time.process_time(),
            "example": self.example, **self.counts,
        }  # fmt: skip


class Stream(asyncio.Protocol):
    """One connection: a request after the other, or only one."""

    def __init__(self, load: Load, again: bool) -> None:
        self._load = load
        self._again = again
        self._parts: list[bytes] = []
        self._rest = b""
        self._seq = 1  # the first entry, which says that the job began, is not shown
        self._asked = 0
        self._sent_at = 0.0
        self._transport: Any = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        load, now = self._load, self._load.now()
        text = self._rest + data
        cut = text.rfind(b"\n\n") + 1  # an event that is not complete waits for its rest
        self._rest = text[cut:]
        seen = [int(seq) for seq in ID.findall(text[:cut])]
        if seen and self._seq == 1:
            load.first_s.append(now - self._sent_at)
        load.counts["doubled"] += sum(b <= a for a, b in zip([self._seq, *seen], seen, strict=False))
        new = (seen[-1] - self._seq) if seen else 0
        self._seq += new
        if not self._parts and not data.startswith(b"HTTP/1.1 200"):
            self._refused(data)
            return
        self._parts.append(data)
        done = data.endswith(END)
        if new or done:
            load.bins[int(now * BINS_PER_S)] += new - (1 if done else 0)  # the last entry is the end, no token
        if done:
            self._ended(now)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self._load.fail(f"the connection was lost: {error}")
            self.over.set_result(None)

    def _next(self) -> None:
        request = self._load.request()
        if request is None:
            self.over.set_result(None)
            self._transport.close()
            return
        data, self._asked = request
        self._parts, self._rest, self._seq = [], b"", 1
        self._sent_at = self._load.now()
        self._transport.write(data)

    def _refused(self, data: bytes) -> None:
        self._load.fail(data[-300:].decode(errors="replace"))
        self.over.set_result(None)
        self._transport.close()

    def _ended(self, now: float) -> None:
        """Every word that was asked for must be there."""
        load, whole = self._load, b"".join(self._parts)
        load.last_s = now
        usage = USAGE.findall(whole)
        if DONE not in whole or not usage:
            load.fail(whole[-300:].decode(errors="replace"))
        else:
            made = int(usage[-1])
            load.counts["done"] += 1
            load.counts["tokens"] += made
            if load.order.get("words"):
                words = len(b"".join(TEXT.findall(whole)).split())
                load.counts["lost"] += max(0, self._asked - words)
                load.counts["doubled"] += max(0, words - self._asked)
        if self._again:
            self._next()
        else:
            self.over.set_result(None)
            self._transport.close()


async def connect(load: Load, again: bool) -> None:
    """One connection, to its end."""
    loop = asyncio.get_running_loop()
    try:
        _, stream = await loop.create_connection(lambda: Stream(load, again), "127.0.0.1", load.order["port"])
        await asyncio.wait_for(stream.over, load.order.get("refill_s", 0) + LONGEST_ANSWER_S)
    except (OSError, TimeoutError) as error:
        load.fail(f"{type(error).__name__}: {error}")


async def run(load: Load) -> None:
    """All of them."""
    if "arrivals" not in load.order:
        await asyncio.gather(*(connect(load, True) for _ in range(load.order["streams"])))
        return
    tasks = set()
    for at in load.order["arrivals"]:
        await asyncio.sleep(max(0.0, at - load.now()))
        task = asyncio.create_task(connect(load, False))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


def start(order: dict[str, Any]) -> subprocess.Popen[str]:
    """The client as a process; `finish` gives its result."""
    command = [sys.executable, str(Path(__file__))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(order))
    process.stdin.close()
    return process


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a client counted. The keys of `bins` are tenths of a second."""
    assert process.stdout is not None
    text = process.stdout.read()
    if process.wait() != 0:
        raise SystemExit("the client failed")
    result = dict(json.loads(text))
    result["bins"] = {int(at): tokens for at, tokens in result["bins"].items()}
    return result


def main() -> None:
    import uvloop

    load = Load(json.loads(sys.stdin.read()))
    uvloop.run(run(load))
    print(json.dumps(load.result()))


if __name__ == "__main__":
    main()
