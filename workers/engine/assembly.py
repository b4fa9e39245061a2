"""The last step of building an engine, the same for all that run a model: contract, limits and grammars around a backend."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from tokenizers import Tokenizer

from workers.engine.base import ModelProfile
from workers.engine.batching import Backend, BatchingEngine
from workers.engine.constraint import grammars_of
from workers.engine.registry import EngineSpec


class Known(Protocol):
    """What an engine knows of its model. `eos` are the ids that end an answer."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def profile(self) -> ModelProfile: ...
    @property
    def eos(self) -> frozenset[int]: ...


class Sized(Backend, Protocol):
    """A backend that knows the longest sequence, prompt and answer, that it can hold."""

    @property
    def capacity(self) -> int: ...


def engine_around(backend: Sized, known: Known, max_num_seqs: int) -> BatchingEngine:
    """Its context is no longer than its KV cache."""
    grammars = grammars_of(known.tokenizer, known.profile.vocab_size, known.eos)
    limit = min(known.profile.max_model_len, backend.capacity)
    profile = dataclasses.replace(known.profile, max_model_len=limit, structured=grammars is not None)
    return BatchingEngine(backend, profile, known.tokenizer, known.eos, max_num_seqs, grammars)


def announce(spec: EngineSpec, engine: BatchingEngine, known: Known) -> None:
    """Say that it is ready, and what it cannot do."""
    if engine.profile.max_model_len < (spec.max_model_len or known.profile.max_model_len):
        spec.say(f"max_model_len is {engine.profile.max_model_len}: what the model and the KV cache allow")
    if not engine.profile.structured:
        spec.say("no structured output: llguidance does not know this kind of tokenizer")
    spec.say("ready")
