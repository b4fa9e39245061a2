"""Tokens/s and time to first token: the whole line against the same engine called in process.

The line is client → HTTP → Redis queue → Celery worker → engine → Redis → relay → SSE; in process means `engine.step()`
in a loop, with no queue and no HTTP. Both answer the same prompts, drawn from a printed seed, in rounds that alternate,
so that a noisy machine hits both. Needs a running pool (`make up`):

    python bench/line.py --streams 1 8 32 --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from transformers import AutoTokenizer

from tasks.catalog import load_catalog
from tasks.sampling import Sampling
from workers.engine.base import Engine, Request
from workers.engine.registry import EngineSpec, build


@dataclass(frozen=True)
class Round:
    """One measurement: tokens per second of the whole batch, and the times to first token in seconds."""

    tokens_per_s: float
    ttft: list[float]


def draw_prompts(rng: random.Random, count: int, numbers: int) -> list[str]:
    """Counting prompts of equal length, none twice."""
    starts = rng.sample(range(100, 999 - numbers), count)
    return [f"Count from {start} to {start + numbers - 1}." for start in starts]


async def stream(client: httpx.AsyncClient, model: str, prompt: str) -> tuple[float, int]:
    """One streamed chat: seconds to the first text, and completion tokens by the server's usage."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begin, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            if not first and '"content":"' in line and '"content":""' not in line:
                first = time.perf_counter() - begin
            if '"usage":{' in line:
                tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    return first, tokens


async def through_the_line(url: str, model: str, prompts: list[str]) -> Round:
    """All prompts at once through the API."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        begin = time.perf_counter()
        results = await asyncio.gather(*(stream(client, model, prompt) for prompt in prompts))
        took = time.perf_counter() - begin
    return Round(sum(tokens for _, tokens in results) / took, [first for first, _ in results])


def in_process(engine: Engine, prompts: list[list[int]]) -> Round:
    """All prompts at once in this process, step by step."""
    begin, tokens = time.perf_counter(), 0
    first: dict[str, float] = {}
    for number, prompt in enumerate(prompts):
        engine.submit(Request(str(number), prompt, Sampling(max_tokens=1024, seed=0, temperature=0.0)))
    while engine.has_work():
        for event in engine.step():
            tokens += len(event.tokens)
            if event.text:
                first.setdefault(event.rid, time.perf_counter() - begin)
    return Round(tokens / (time.perf_counter() - begin), list(first.values()))


def row(streams: int, name: str, rounds: list[Round]) -> str:
    """One line of the table: median and spread of the rate, median and 99th percentile of the time to first token."""
    rates = [r.tokens_per_s for r in rounds]
    ttft = sorted(seconds * 1000 for r in rounds for seconds in r.ttft)
    late = ttft[min(len(ttft) - 1, int(len(ttft) * 0.99))]
    return (
        f"| {streams} | {name} | {statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f}) "
        f"| {statistics.median(ttft):.0f} | {late:.0f} |"
    )


def main() -> None:
    """Run the rounds and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--models", type=Path, default=Path("models.toml"))
    parser.add_argument("--model", default="penstock-demo")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--numbers", type=int, default=50, help="how far each prompt counts")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    entry = load_catalog(args.models).get(args.model)
    if entry is None:
        parser.error(f"{args.models} has no model {args.model!r}")
    spec = EngineSpec(
        path=entry.path,
        dtype=entry.dtype,
        device=entry.device,
        max_num_seqs=entry.max_num_seqs,
        max_model_len=entry.max_model_len,
    )
    engine = build(entry.engine, spec)
    tokenizer = AutoTokenizer.from_pretrained(entry.path)
    rng = random.Random(args.seed)
    print(f"seed {args.seed}, {args.rounds} rounds, {args.numbers} numbers each, {os.cpu_count()} cores\n")
    print("| streams | through | tokens/s median (spread) | TTFT p50 ms | TTFT p99 ms |\n|---|---|---|---|---|")
    for streams in args.streams:
        inside: list[Round] = []
        line: list[Round] = []
        for _ in range(args.rounds + 1):  # the first round of each warms up and is dropped
            prompts = draw_prompts(rng, streams, args.numbers)
            ids = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
                )
                for text in prompts
            ]
            inside.append(in_process(engine, ids))
            line.append(asyncio.run(through_the_line(args.url, args.model, prompts)))
        print(row(streams, "the engine in process", inside[1:]))
        print(row(streams, "the whole line", line[1:]))
        ratio = statistics.median(b.tokens_per_s / a.tokens_per_s for a, b in zip(inside[1:], line[1:], strict=True))
        print(f"| {streams} | ratio line / in process, median of rounds | {ratio:.2f} | | |", flush=True)


if __name__ == "__main__":
    main()
