"""What `bench/engine.py` compares: ways to run the same prompts through the same model.

Each contender has a `name` and `run(prompts, new) -> Run`, which makes exactly `new` greedy tokens for every prompt, all
of them asked for at once.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer, models
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

from tasks.profile import ModelProfile
from tasks.sampling import Sampling
from workers.engine.base import Engine, Request
from workers.engine.budget import Budget
from workers.engine.continuous import assemble
from workers.engine.loading import Loaded

Prompts = Sequence[Sequence[int]]

#: Llama shapes: hidden, layers, heads, key heads, feed-forward, vocabulary. Parameters: 5.0, 0.6 M and 134 M.
SHAPES = {
    "llama-s": (256, 4, 8, 4, 688, 4096),
    "llama-nano": (64, 2, 4, 2, 172, 4096),
    "llama-135m": (576, 30, 9, 3, 1536, 49152),
}


def random_model(shape: str, context: int = 4096) -> Any:
    """A random fp32 model of one of `SHAPES`, or the demo model."""
    if shape == "demo":
        return LlamaForCausalLM.from_pretrained(Path(__file__).parents[1] / "models/demo", dtype=torch.float32).eval()
    hidden, layers, heads, key_heads, forward, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=key_heads,
        intermediate_size=forward, vocab_size=vocabulary, max_position_embeddings=context,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@dataclass(frozen=True)
class Run:
    """One measurement: seconds for all of it, and seconds to the first token of each prompt."""

    seconds: float
    first: list[float]
    tokens: int

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


class Contender(Protocol):
    """One way to run prompts."""

    name: str

    def run(self, prompts: Prompts, new: int) -> Run:
        """Make `new` tokens for each prompt."""

    def close(self) -> None:
        """End what was started."""


def drive(engine: Engine, prompts: Prompts, new: int) -> Run:
    """Step an engine of ours until every prompt has its answer."""
    begin = time.perf_counter()
    sampling = Sampling(max_tokens=new, seed=0, temperature=0.0, ignore_eos=True)
    for number, prompt in enumerate(prompts):
        engine.submit(Request(str(number), prompt, sampling))
    first: dict[str, float] = {}
    tokens = 0
    while engine.has_work():
        events = engine.step()
        now = time.perf_counter() - begin
        for event in events:
            first.setdefault(event.rid, now)
            tokens += len(event.tokens)
    return Run(time.perf_counter() - begin, list(first.values()), tokens)


class Ours:
    """Our engine, step by step, as a worker drives it. `host_s` is what was not spent in the model's own forward."""

    name = "penstock"

    def __init__(self, model: Any, streams: int, kv_tokens: int) -> None:
        self._model = copy.deepcopy(model)
        vocabulary = model.config.vocab_size
        words = models.WordLevel({f"w{token} ": token for token in range(vocabulary)}, unk_token="w0 ")
        tokenizer = Tokenizer(words)
        profile = ModelProfile(
            tokenizer=tokenizer.to_str(), chat_template=None, special_tokens={},
            max_model_len=model.config.max_position_embeddings, vocab_size=vocabulary,
        )  # fmt: skip
        loaded = Loaded(self._model, tokenizer, profile, frozenset())
        self.engine = assemble(loaded, Budget(streams, kv_tokens, 512))
        self.host_s = self._forward_s = 0.0
        backend: Any = self.engine._backend
        backend._model = self._timed(backend._model)

    def run(self, prompts: Prompts, new: int) -> Run:
        self._forward_s = 0.0
        run = drive(self.engine, prompts, new)
        self.host_s = run.seconds - self._forward_s
        return run

    def close(self) -> None:
        self.engine.close()

    def _timed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(**inputs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return forward(**inputs)
            finally:
                self._forward_s += time.perf_counter() - begin

        call.__dict__.update(device=self._model.device, config=self._model.config)
        return call


class Manager:
    """transformers' own continuous batching, in its thread, with the attention that it has here."""

    name = "transformers' manager"

    def __init__(self, model: Any, streams: int, kv_tokens: int) -> None:
        self._model = copy.deepcopy(model)
        neutral: Any = GenerationConfig  # untyped
        self._batching = self._model.init_continuous_batching(
            generation_config=neutral(do_sample=False, eos_token_id=-1, max_new_tokens=1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=32, num_blocks=-(-kv_tokens // 32), max_batch_tokens=512, max_requests_per_batch=max(streams, 1),
                auto_switch_to_flash=False,
            ),
        )  # fmt: skip
        self._batching.start()

    def run(self, prompts: Prompts, new: int) -> Run:
        begin = time.perf_counter()
        for number, prompt in enumerate(prompts):
            self._batching.add_request(list(prompt), f"{begin}-{number}", max_new_tokens=new, streaming=True)
        first: dict[str, float] = {}
        done = 0
        while done < len(prompts):
            result = self._batching.get_result(timeout=60)
            if result is None:
                raise RuntimeError("transformers' manager gave no result for a minute")
            first.setdefault(result.request_id, time.perf_counter() - begin)
            done += result.is_finished()
        return Run(time.perf_counter() - begin, list(first.values()), new * len(prompts))

    def close(self) -> None:
        self._batching.stop(block=True, timeout=30)


class Sequential:
    """`generate()` for one request after the other. The first token of the n-th waits for n - 1 answers."""

    name = "generate(), one by one"

    def __init__(self, model: Any, streams: int, kv_tokens: int) -> None:
        self._model = copy.deepcopy(model)

    def run(self, prompts: Prompts, new: int) -> Run:
        begin, first = time.perf_counter(), []
        for prompt in prompts:
            started = time.perf_counter() - begin
            generate(self._model, [prompt], new)
            ended = time.perf_counter() - begin
            first.append(started + (ended - started) / new)  # an estimate: nothing comes out before the end
        return Run(time.perf_counter() - begin, first, new * len(prompts))

    def close(self) -> None:
        pass


class Static:
    """`generate()` for all requests as one padded batch. Nothing comes out before the end."""

    name = "generate(), one padded batch"

    def __init__(self, model: Any, streams: int, kv_tokens: int) -> None:
        self._model = copy.deepcopy(model)

    def run(self, prompts: Prompts, new: int) -> Run:
        begin = time.perf_counter()
        generate(self._model, prompts, new)
        seconds = time.perf_counter() - begin
        return Run(seconds, [seconds] * len(prompts), new * len(prompts))

    def close(self) -> None:
        pass


@torch.inference_mode()
def generate(model: Any, prompts: Prompts, new: int) -> Any:
    """Greedy answers of `model.generate()`, prompts padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
    )


class Vllm:
    """vLLM's engine in a process of its own, driven by `LLMEngine.step()`; see `bench/vllm_run.py`."""

    name = "vLLM, in process"

    def __init__(self, python: str, folder: Path, streams: int, kv_tokens: int) -> None:
        command = [python, str(Path(__file__).with_name("vllm_run.py")), str(folder), str(streams), str(kv_tokens)]
        environment = os.environ | {"PYTHONPATH": "", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )
        self._answer()

    def run(self, prompts: Prompts, new: int) -> Run:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "new": new}) + "\n")
        return Run(**self._answer())

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError(f"vLLM ended with status {self._process.wait()}")
