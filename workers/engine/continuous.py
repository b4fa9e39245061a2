"""The engine "transformers": any causal language model of transformers, continuously batched over a paged KV
cache.

It joins the parts: `loading` (weights and limits), `paged` (transformers' scheduler and cache), `attention`,
`sampler`, and `batching` (the contract).
"""

from __future__ import annotations

import dataclasses
import time

from tasks.sampling import Sampling
from workers.engine.base import Request
from workers.engine.batching import BatchingEngine
from workers.engine.constraint import Grammars
from workers.engine.loading import Loaded, load, plan_budget
from workers.engine.paged import Budget, PagedBackend
from workers.engine.registry import EngineSpec
from workers.engine.sampler import Sampler
from workers.engine.sequence import LiveSequence
from workers.engine.vocabulary import Vocabulary


def build(spec: EngineSpec) -> BatchingEngine:
    """The registry's entry: load, size the cache, warm up."""
    loaded = load(spec)
    budget = plan_budget(spec, loaded.model, loaded.profile.max_model_len)
    engine = assemble(loaded, budget)
    if engine.profile.max_model_len < (spec.max_model_len or loaded.profile.max_model_len):
        spec.say(f"max_model_len is {engine.profile.max_model_len}: what the model and the KV cache allow")
    if not engine.profile.structured:
        spec.say("no structured output: llguidance does not know this kind of tokenizer")
    spec.say("ready")
    return engine


def assemble(loaded: Loaded, budget: Budget) -> BatchingEngine:
    """An engine around a model in memory. Its context is no longer than its KV cache."""
    backend = PagedBackend(loaded.model, Sampler(Vocabulary(loaded.tokenizer)), budget)
    limit = min(loaded.profile.max_model_len, backend.capacity)
    grammars = _grammars(loaded)
    profile = dataclasses.replace(loaded.profile, max_model_len=limit, structured=grammars is not None)
    warm_up(backend, loaded)
    return BatchingEngine(backend, profile, loaded.tokenizer, loaded.eos, budget.max_num_seqs, grammars)


def _grammars(loaded: Loaded) -> Grammars | None:
    """None for a tokenizer that llguidance does not know: such a model is served without structured output."""
    try:
        return Grammars(loaded.tokenizer, loaded.profile.vocab_size, loaded.eos)
    except ValueError:
        return None


def warm_up(backend: PagedBackend, loaded: Loaded) -> float:
    """Run one prompt and one more token, so that the first request does not pay for lazy initialisation;
    seconds.
    """
    begun = time.perf_counter()
    request = Request("warm-up", [0] * 8, Sampling(max_tokens=2, seed=0, temperature=0.0))
    sequence = LiveSequence(request, loaded.tokenizer, ())
    backend.add(sequence)
    for made in backend.forward() + backend.forward():
        sequence.advance(made.token)
    backend.reset()
    return time.perf_counter() - begun
