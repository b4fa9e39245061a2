"""Models that short texts at load cannot tell from others: refused for batches, and served one after the other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from tests.contract.test_parity import engine_answers
from tests.tiny_models import fast_tokenizer
from workers.engine.budget import Budget
from workers.engine.continuous import assemble
from workers.engine.known import check_layers, check_windows
from workers.engine.loading import describe
from workers.engine.paged_batch import Unsupported
from workers.engine.serial import SerialBackend


def text(**given: Any) -> Any:
    return SimpleNamespace(**given)


def long_rope() -> Any:
    """A tiny Phi-3 whose factors change where a sequence grows past 64 tokens."""
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 8, "long_factor": [8.0] * 8,
    }  # fmt: skip
    config = Phi3Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        vocab_size=len(fast_tokenizer()), max_position_embeddings=512, original_max_position_embeddings=64,
        rope_parameters=rope, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return Phi3ForCausalLM(config).eval()


def test_positions_that_depend_on_the_longest_sequence_are_not_batched() -> None:
    said: list[str] = []
    engine = assemble(describe(long_rope(), fast_tokenizer()), Budget(4, 2048, 256, 16), said.append)
    assert isinstance(engine._backend, SerialBackend)
    assert "longrope" in said[0]


def test_their_answers_do_not_depend_on_neighbours() -> None:
    model = long_rope()
    short, long = [7, 8, 9] * 6, [5, 6] * 100
    together = engine_answers(model, fast_tokenizer(), {0: short, 1: long}, SerialBackend)
    alone = engine_answers(model, fast_tokenizer(), {0: short}, SerialBackend)
    assert together[0] == alone[0]


@pytest.mark.parametrize(
    "given",
    [
        text(rope_parameters={"rope_type": "dynamic"}),
        text(
            rope_parameters={"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "longrope"}}
        ),
        text(layer_types=["full_attention", "chunked_attention"]),
    ],
)
def test_what_cannot_be_batched_is_refused(given: Any) -> None:
    with pytest.raises(Unsupported):
        check_layers(given)


def test_what_can_be_batched_is_not() -> None:
    check_layers(text())
    check_layers(text(rope_parameters={"rope_type": "llama3"}, layer_types=["full_attention", "sliding_attention"]))


@pytest.mark.parametrize(
    ("given", "asked", "fits"),
    [
        (text(sliding_window=100), {None}, False),
        (text(sliding_window=100), {100}, True),
        (text(sliding_window=None), {None}, True),
        (text(), {None}, True),
        (text(sliding_window=100, use_sliding_window=False), {None}, True),
        (text(sliding_window=100, layer_types=["full_attention"]), {None}, True),
        (text(sliding_window=100, layer_types=["full_attention", "sliding_attention"]), {None}, False),
        (text(sliding_window=100, layer_types=["full_attention", "sliding_attention"]), {None, 100}, True),
    ],
)
def test_a_window_must_be_asked_of_the_attention(given: Any, asked: set[int | None], fits: bool) -> None:
    if fits:
        check_windows(given, asked)
    else:
        with pytest.raises(Unsupported, match="window"):
            check_windows(given, asked)


def test_a_model_whose_window_is_in_its_mask_alone_is_not_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny_models import tiny_model
    from workers.engine import paged_batch

    monkeypatch.setattr(
        paged_batch.PagedBatch, "accept", lambda self, window, *_: self.cache.windows.add(None)
    )  # as if nobody had asked
    engine = assemble(describe(tiny_model("mistral"), fast_tokenizer()), Budget(4, 2048, 256, 16))
    assert isinstance(engine._backend, SerialBackend)


def test_a_model_that_runs_neither_way_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny_models import tiny_model

    def refuse(*_: Any) -> Any:
        raise TypeError("it has a cache of its own")

    monkeypatch.setattr(SerialBackend, "_advance", refuse)
    with pytest.raises(ValueError, match=r"Gemma2ForCausalLM cannot be served .* a cache of its own"):
        assemble(describe(tiny_model("gemma2"), fast_tokenizer()), Budget(4, 2048, 256, 16))
