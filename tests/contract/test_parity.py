"""Greedy answers of the engine "transformers" are those of `model.generate()`, on every attention path."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tasks.sampling import Sampling
from tests.contract.engines import DEMO
from tests.tiny_models import FAMILIES, fast_tokenizer, tiny_model
from workers.engine import attention, packed
from workers.engine.base import Engine, Request
from workers.engine.budget import Budget
from workers.engine.continuous import assemble
from workers.engine.loading import describe
from workers.engine.paged import PagedBackend
from workers.engine.serial import SerialBackend
from workers.engine.varlen import varlen_attention

NEW_TOKENS = 24
WANTED = 50  # answers that are worth comparing
DISTINCT = 8  # an answer with fewer distinct tokens is a loop, and proves little
SERIAL = {"gemma2", "bloom"}  # families that are not batched
UNDECIDED = 1e-4  # where the two best logits are closer than this, either token is right


def random_prompts(count: int) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(256) for _ in range(rng.randint(3, 300))] for _ in range(count)]


@torch.inference_mode()
def reference(model: Any, prompts: list[list[int]]) -> dict[int, list[int]]:
    """Answers of `generate()`, by prompt number, of those prompts whose answers are worth comparing."""
    answers = {}
    for number, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        # Without a mask, generate() would take every pad token in the prompt for padding.
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
        answer = out[0, len(prompt) :].tolist()
        if len(set(answer)) >= DISTINCT:
            answers[number] = answer
    return answers


def engine_answers(model: Any, source: Any, prompts: dict[int, list[int]], backend: type) -> dict[int, list[int]]:
    engine = assemble(describe(copy.deepcopy(model), source), Budget(16, 2048, 128))
    assert isinstance(engine._backend, backend)
    return greedy(engine, prompts)


def greedy(engine: Engine, prompts: dict[int, list[int]]) -> dict[int, list[int]]:
    for number, prompt in prompts.items():
        engine.submit(Request(str(number), prompt, Sampling(max_tokens=NEW_TOKENS, seed=0, temperature=0.0)))
    answers: dict[int, list[int]] = {number: [] for number in prompts}
    while engine.has_work():
        for event in engine.step():
            answers[int(event.rid)] += event.tokens
    return answers


def check(model: Any, source: Any, prompts: list[list[int]], backend: type = PagedBackend) -> None:
    compare(model, prompts, lambda asked: engine_answers(model, source, asked, backend))


@torch.inference_mode()
def compare(
    model: Any, prompts: list[list[int]], answer: Callable[[dict[int, list[int]]], dict[int, list[int]]]
) -> None:
    """What `answer` says to prompts is what the model's `generate()` says."""
    expected = reference(model, prompts)
    assert len(expected) >= WANTED
    answers = answer({number: prompts[number] for number in expected})
    for number, found in answers.items():
        if found == expected[number]:
            continue
        same = next(at for at, pair in enumerate(zip(found, expected[number], strict=False)) if pair[0] != pair[1])
        logits = model(torch.tensor([prompts[number] + found[:same]])).logits[0, -1]
        assert abs(logits[found[same]] - logits[expected[number][same]]) < UNDECIDED, f"prompt {number}, token {same}"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_answers_as_generate_does(family: str) -> None:
    check(tiny_model(family), fast_tokenizer(), random_prompts(60), SerialBackend if family in SERIAL else PagedBackend)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral"])
def test_a_model_with_packed_layers_answers_as_generate_does(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setattr(packed, "_WORTH_IT", 0)
    model = copy.deepcopy(tiny_model(family))
    check(model, fast_tokenizer(), random_prompts(60), PagedBackend)
    assert packed.pack(copy.deepcopy(tiny_model(family))) or not packed._is_of_use(model)


def test_the_gpu_path_answers_as_generate_does_with_a_stand_in_for_its_kernel(
    monkeypatch: pytest.MonkeyPatch, varlen: Callable[..., Any]
) -> None:
    """What it proves is how the kernel is called; the kernel itself runs on GPUs only."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    monkeypatch.setattr(attention, "gather_attention", varlen_attention)
    for family in ("llama", "mistral"):
        check(tiny_model(family), fast_tokenizer(), random_prompts(60), PagedBackend)


@pytest.fixture
def varlen() -> Callable[..., Any]:
    """What the documentation of `varlen_attn` says, one sequence at a time."""

    def attend(
        query: Any, keys: Any, values: Any, starts_q: Any, starts_k: Any, max_q: int, max_k: int, **kwargs: Any
    ) -> Any:
        lengths, table, (window, right) = kwargs["seqused_k"], kwargs["block_table"], kwargs["window_size"]
        assert right == 0  # causal
        assert torch.equal(starts_k.diff(), lengths)
        assert (int(starts_q.diff().max()), int(lengths.max())) == (max_q, max_k)
        out = torch.empty_like(query)
        for at, pages in enumerate(table.long()):
            q, longest = slice(*starts_q[at : at + 2].tolist()), int(lengths[at])
            length = q.stop - q.start
            mask = torch.ones(length, longest, dtype=torch.bool).tril(longest - length)
            if window >= 0:
                mask = mask.triu(longest - length - window)
            own = [each[pages].flatten(0, 1)[:longest].transpose(0, 1)[None] for each in (keys, values)]
            done = torch.nn.functional.scaled_dot_product_attention(
                query[q].transpose(0, 1)[None],
                *own,
                attn_mask=mask,
                scale=kwargs["scale"],
                enable_gqa=kwargs["enable_gqa"],
            )
            out[q] = done[0].transpose(0, 1)
        return out

    return attend


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_uses_the_kernel_and_follows_generate() -> None:
    model = copy.deepcopy(tiny_model("llama")).to("cuda", torch.bfloat16)
    prompts = dict(enumerate(random_prompts(8)))
    answers = engine_answers(model, fast_tokenizer(), prompts, PagedBackend)
    assert attention.register(model.device, model.dtype) == attention.VARLEN
    for number, prompt in prompts.items():
        ids = torch.tensor([prompt], device="cuda")
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0
        )
        assert answers[number][0] == int(out[0, -1]), f"prompt {number}"


@pytest.mark.skipif(not (DEMO / "model.safetensors").exists(), reason="the demo model has no weights here")
def test_the_demo_model_answers_as_generate_does() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    source = AutoTokenizer.from_pretrained(DEMO)
    check(model, source, demo_prompts(source))


def demo_prompts(source: Any) -> list[list[int]]:
    asked = [f"Count from {first} to {first + 20}." for first in range(40)] + ["Tell me a story."]
    asked += [f"Count down from {first} to {first - 20}." for first in range(40, 80)]
    return [source.encode(f"<|user|>{text}<|end|><|assistant|>", add_special_tokens=False) for text in asked]
