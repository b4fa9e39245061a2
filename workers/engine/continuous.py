"""The engine "transformers": any causal language model of transformers, continuously batched over a paged KV
cache.

It joins the parts: `loading` (weights and limits), `paged` (transformers' scheduler and cache) with `attention`,
`serial` for models that these do not know, `sampler`, and `batching` (the contract).
"""

from __future__ import annotations

from collections.abc import Callable

from workers.engine.assembly import announce, engine_around
from workers.engine.batching import BatchingEngine
from workers.engine.budget import Budget, plan_budget
from workers.engine.check import TOLERANCE, check, plain_logits, sample_texts
from workers.engine.known import check_windows
from workers.engine.loading import Loaded, load
from workers.engine.packed import pack, unpack
from workers.engine.paged import PagedBackend
from workers.engine.paged_batch import Unsupported
from workers.engine.placement import is_spread
from workers.engine.registry import EngineSpec
from workers.engine.sampler import Sampler
from workers.engine.serial import SerialBackend
from workers.engine.vocabulary import Vocabulary
from workers.engine.warmup import warm_up


def build(spec: EngineSpec) -> BatchingEngine:
    """The registry's entry: load, size the cache, warm up."""
    loaded = load(spec)
    budget = plan_budget(spec, loaded.model, loaded.profile.max_model_len)
    engine = assemble(loaded, budget, spec.say)
    announce(spec, engine, loaded)
    return engine


def assemble(loaded: Loaded, budget: Budget, say: Callable[[str], None] | None = None) -> BatchingEngine:
    """An engine around a model in memory. Its context is no longer than its KV cache."""
    backend = _backend(loaded, budget, say)
    engine = engine_around(backend, loaded, budget.max_num_seqs)
    warm_up(backend, loaded, budget, engine.profile.max_model_len)
    return engine


def _backend(loaded: Loaded, budget: Budget, say: Callable[[str], None] | None) -> PagedBackend | SerialBackend:
    """The batching backend where it gives the model's own answers, else the serial one. Warmed up, too."""
    sampler = Sampler(Vocabulary(loaded.tokenizer))
    text = loaded.model.config.get_text_config()
    texts = sample_texts(text.vocab_size, min(loaded.profile.max_model_len, budget.kv_tokens))
    expected = plain_logits(loaded.model, texts)
    tolerance = TOLERANCE.get(loaded.model.dtype, 1e-2)
    own = loaded.model.config._attn_implementation, text._attn_implementation
    try:
        if is_spread(loaded.model):
            raise Unsupported("its layers lie on several devices")
        pack(loaded.model)
        backend = PagedBackend(loaded.model, sampler, budget)
        check(backend, loaded.tokenizer, tolerance, texts, expected)
        check_windows(text, backend.windows())
        return backend
    except Unsupported as reason:
        loaded.model.config._attn_implementation, text._attn_implementation = own
        unpack(loaded.model)
        if say is not None:
            say(f"no continuous batching for this model, its sequences run one after the other: {reason}")
    serial = SerialBackend(loaded.model, sampler, budget)
    try:
        check(serial, loaded.tokenizer, tolerance, texts, expected)
    except Unsupported as reason:
        raise ValueError(f"{type(loaded.model).__name__} cannot be served token by token: {reason}") from reason
    return serial
