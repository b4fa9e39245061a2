"""First light: the shipped demo model answers real requests through the whole line."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import ROOT, Pool

MODEL = "penstock-demo"
DEMO = ROOT / "models" / "demo"


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
        messages=user("Count down from 90 to 41."),  # type: ignore[arg-type]
    )
    assert answer.choices[0].message.content == counting(90, 41)
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


def by_the_model_alone(questions: list[str]) -> list[str]:
    """What `generate()` answers, greedily and in one batch, with no line around it."""
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO)
    chats = [
        tokenizer.apply_chat_template(user(question), tokenize=False, add_generation_prompt=True)
        for question in questions
    ]
    inputs = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=128, do_sample=False)
    return [tokenizer.decode(row[inputs["input_ids"].shape[1] :], skip_special_tokens=True) for row in out]


async def test_two_hundred_at_once_come_back_as_the_model_alone_answers(pool: Pool) -> None:
    seed = random.randrange(10**9)
    rng = random.Random(seed)
    pairs = []
    for _ in range(200):
        start, length = rng.randrange(0, 960), rng.randrange(5, 40)
        pairs.append((start, start + length) if rng.random() < 0.7 else (start + length, start))
    questions = [f"Count from {start} to {end}." for start, end in pairs]
    client = openai.AsyncOpenAI(base_url=f"{pool.url}/v1", api_key="none", timeout=110)

    async def ask(question: str) -> str:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=user(question),  # type: ignore[arg-type]
            temperature=0,
            max_tokens=128,
            stream=True,
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    answers = await asyncio.gather(*(ask(question) for question in questions))
    await client.close()
    same = sum(answer == alone for answer, alone in zip(answers, by_the_model_alone(questions), strict=True))
    assert same >= 196, f"{same} of 200 as the model alone (seed {seed})"
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
    """SIGKILL in mid-stream: the same stream goes on, and its text is that of an undisturbed run."""
    question = user("Count from 100 to 290.")
    text, killed = "", False
    with pool.sdk(max_retries=0).chat.completions.create(
        model=MODEL,
        messages=question,  # type: ignore[arg-type]
        temperature=0,
        stream=True,
    ) as stream:
        for chunk in stream:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            if not killed and "130" in text:
                card = httpx.get(f"{pool.url}/v1/workers", timeout=5).json()["data"][0]
                os.kill(card["pid"], signal.SIGKILL)
                killed = True
    assert killed
    assert text == counting(100, 290)
