"""First light: the shipped demo model answers real requests through the whole line."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess

import httpx
import openai
import pytest

from tests.e2e.conftest import Pool

MODEL = "penstock-demo"


def counting(start: int, end: int) -> str:
    """What the demo model answers to "Count from start to end."."""
    step = 1 if start <= end else -1
    return ", ".join(str(number) for number in range(start, end + step, step))


def user(text: str) -> list[dict[str, str]]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def test_the_sdk_streams_exactly_the_answer(pool: Pool) -> None:
    stream = pool.sdk().chat.completions.create(
        model=MODEL,
        messages=user("Count from 3 to 40."),
        temperature=0,
        stream=True,  # type: ignore[arg-type]
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == counting(3, 40)
    assert len(chunks) > 20, "it streams: many chunks, not one"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_sdk_without_streaming(pool: Pool) -> None:
    answer = pool.sdk().chat.completions.create(
        model=MODEL,
        messages=user("Count from 9 to 2."),
        temperature=0,  # type: ignore[arg-type]
    )
    assert answer.choices[0].message.content == counting(9, 2)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_curl_streams_it_too(pool: Pool) -> None:
    body = json.dumps({"model": MODEL, "messages": user("Count from 3 to 40."), "temperature": 0, "stream": True})
    done = subprocess.run(
        ["curl", "-sN", f"{pool.url}/v1/chat/completions", "-H", "content-type: application/json", "-d", body],
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == counting(3, 40)


async def test_two_hundred_at_once_come_back_right(pool: Pool) -> None:
    seed = random.randrange(10**9)
    rng = random.Random(seed)
    pairs = []
    for _ in range(200):
        start, length = rng.randrange(0, 960), rng.randrange(5, 40)
        pairs.append((start, start + length) if rng.random() < 0.7 else (start + length, start))
    client = openai.AsyncOpenAI(base_url=f"{pool.url}/v1", api_key="none", timeout=110)

    async def ask(start: int, end: int) -> str:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=user(f"Count from {start} to {end}."),
            temperature=0,
            stream=True,  # type: ignore[arg-type]
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    answers = await asyncio.gather(*(ask(*pair) for pair in pairs))
    await client.close()
    right = sum(answer == counting(*pair) for answer, pair in zip(answers, pairs, strict=True))
    assert right >= 196, f"{right} of 200 right (seed {seed})"


@pytest.mark.parametrize(
    "question", ["Say something in Chinese.", "Say something in Arabic.", "Say something with emoji."]
)
def test_byte_level_text_streams_whole(pool: Pool, question: str) -> None:
    stream = pool.sdk().chat.completions.create(
        model=MODEL,
        messages=user(question),
        temperature=0,
        stream=True,  # type: ignore[arg-type]
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    whole = pool.sdk().chat.completions.create(model=MODEL, messages=user(question), temperature=0)  # type: ignore[arg-type]
    assert text == whole.choices[0].message.content
    assert "\ufffd" not in text
    assert not text.isascii()


def test_a_killed_worker_loses_nothing(pool: Pool) -> None:
    """SIGKILL in mid-stream: the same stream goes on, every token once, in order."""
    text, killed = "", False
    with pool.sdk(max_retries=0).chat.completions.create(
        model=MODEL,
        messages=user("Count from 100 to 290."),
        temperature=0,
        stream=True,  # type: ignore[arg-type]
    ) as stream:
        for chunk in stream:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            if not killed and "130" in text:
                card = httpx.get(f"{pool.url}/v1/workers", timeout=5).json()["data"][0]
                os.kill(card["pid"], signal.SIGKILL)
                killed = True
    assert killed
    assert text == counting(100, 290)
