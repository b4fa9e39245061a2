"""The one place that touches vLLM: it schedules, keeps the KV cache and runs the model; our sampler chooses the tokens.

vLLM calls `Chooser` with the logits of a step. It finds our sequence of each row, has the sampler choose, and leaves
vLLM nothing but that token to take. So seeds, penalties, grammars and log probabilities mean what they mean with every
other engine, and an answer can be resumed at any token. vLLM is told to end nothing; a sequence that goes on
elsewhere, or again, is given to it as a longer prompt.

`workers.engine.vllm` sets the environment that all of this needs before it imports this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from workers.engine.base import EngineDead
from workers.engine.batching import Made
from workers.engine.sampler import Choice, Sampler
from workers.engine.sequence import LiveSequence

_RID = "penstock_rid"


class Desk:
    """What the backend and vLLM's model runner share: the sequences, who is in the batch, and what was chosen.

    It does not know the engine: vLLM remembers the classes of processors for ever, and so whatever they lead to.
    """

    def __init__(self, sampler: Sampler, vocab_size: int) -> None:
        self.sequences: dict[str, LiveSequence] = {}
        self.batch: list[str] = []
        self.choices: dict[str, Choice] = {}
        self._sampler = sampler
        self._vocab_size = vocab_size

    def choose(self, logits: Tensor, rids: Sequence[str]) -> Tensor:
        """The logits with one token left in each row. A row whose prompt is not read in yet counts for nothing."""
        rows = [self.sequences[rid] for rid in rids]
        choices = self._sampler.choose(logits[:, : self._vocab_size].float(), rows)
        self.choices = dict(zip(rids, choices, strict=True))
        return self._left(logits, [choice.token for choice in choices])

    def _left(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        column = torch.tensor(tokens, device=logits.device).unsqueeze(1)
        return logits.fill_(-torch.inf).scatter_(1, column, 0.0)


class Chooser(LogitsProcessor):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Our sampler in the place of vLLM's; a subclass for each engine has its `desk`."""

    desk: ClassVar[Desk]

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._rids: dict[int, str] = {}  # by row

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Called before each forward: who is in its batch."""
        process_dict_updates(self._rids, batch_update, lambda params, *_: params.extra_args[_RID])
        self.desk.batch = [self._rids[row] for row in sorted(self._rids)]

    def apply(self, logits: Tensor) -> Tensor:
        return self.desk.choose(logits, self.desk.batch)


class VllmBackend:
    """A `workers.engine.batching.Backend` on an `LLMEngine` in this process."""

    def __init__(self, sampler: Sampler, vocab_size: int, arguments: dict[str, Any]) -> None:
        self._desk = Desk(sampler, vocab_size)
        self._new: list[str] = []  # not with vLLM yet
        chooser = type("Chooser", (Chooser,), {"desk": self._desk})
        self._engine: Any = LLMEngine.from_engine_args(EngineArgs(**arguments, logits_processors=[chooser]))
        self._scheduler = self._engine.engine_core.engine_core.scheduler
        self._runner = self._engine.model_executor.driver_worker.worker.model_runner

    @property
    def capacity(self) -> int:
        """The longest sequence, prompt and answer."""
        return int(self._engine.model_config.max_model_len)

    def add(self, sequence: LiveSequence) -> None:
        self._desk.sequences[sequence.rid] = sequence
        self._new.append(sequence.rid)

    def drop(self, rid: str) -> None:
        if self._desk.sequences.pop(rid, None) is None:
            return
        if rid in self._new:
            self._new.remove(rid)
        else:
            self._engine.abort_request([rid])

    def forward(self) -> list[Made]:
        self._desk.batch, self._desk.choices = [], {}
        while self._new:  # here and not in `add`: what vLLM refuses is a failed step, after which recovery finds it
            self._hand_over(self._desk.sequences[self._new[0]])
            self._new.pop(0)
        return [self._made(output) for output in self._engine.step() if output.outputs[0].token_ids]

    def batch(self) -> Sequence[str]:
        return self._desk.batch

    @torch.inference_mode()
    def reset(self) -> None:
        """vLLM goes on after a failed step: its requests are dropped, and what they left in the cache."""
        self._engine.abort_request(list(self._desk.sequences))
        self._desk.sequences.clear()
        self._new.clear()
        clean = self._engine.reset_prefix_cache()  # a failed forward may have left shared blocks half written
        if not clean or any(self._scheduler.get_request_counts()) or self._engine.has_unfinished_requests():
            raise EngineDead("vLLM kept something of the sequences of a failed step")
        for cache in _tensors(self._runner.kv_caches):
            cache.zero_()  # what is not a number there would spoil the sums of whoever gets the block

    def running(self) -> int:
        return int(self._scheduler.get_request_counts()[0])

    def kv_used(self) -> float:
        """Of live sequences; blocks kept for sharing prefixes are free for whoever needs them."""
        return float(min(1.0, self._scheduler.get_kv_cache_usage()))

    def close(self) -> None:
        self._desk.sequences.clear()
        self._new.clear()
        if self._engine is not None:
            self._engine.engine_core.shutdown()
            self._engine = self._scheduler = self._runner = None

    def _hand_over(self, sequence: LiveSequence) -> None:
        """vLLM chooses the best token, of which there is only one, and ends nothing before the context is full."""
        params = SamplingParams(
            temperature=0.0,
            max_tokens=None,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={_RID: sequence.rid},
        )
        prompt = {"type": "token", "prompt_token_ids": [*sequence.request.prompt, *sequence.tokens]}
        self._engine.add_request(sequence.rid, prompt, params)

    def _made(self, output: Any) -> Made:
        """What vLLM says it made, which must be what we chose."""
        rid, (token,) = output.request_id, output.outputs[0].token_ids
        sequence, choice = self._desk.sequences[rid], self._desk.choices[rid]
        if token != choice.token:
            raise RuntimeError(f"vLLM took token {token}, and {choice.token} was chosen")
        if output.finished and len(sequence.request.prompt) + len(sequence.tokens) + 1 < self.capacity:
            raise RuntimeError(f"vLLM ended a sequence by itself: {output.outputs[0].finish_reason}")
        return Made(rid, token, choice.logprob)


def _tensors(caches: Any) -> Iterator[Tensor]:
    """One for each layer; some kinds of layers have several."""
    for cache in caches:
        if isinstance(cache, Tensor):
            yield cache
        else:
            yield from _tensors(cache)
