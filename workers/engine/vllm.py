"""The engine "vllm": vLLM schedules, keeps the KV cache and runs the model, in this process; the rest is ours.

It needs an environment of its own, since vLLM and the engine "transformers" want different versions of transformers:
see docs/engines.md.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch

from tasks.sampling import Sampling
from workers.engine.assembly import engine_around
from workers.engine.base import Request
from workers.engine.batching import Backend, BatchingEngine
from workers.engine.budget import CUDA_BATCH_TOKENS, kv_bytes_per_token, plan_budget
from workers.engine.loading import Description, describe_files, dtype_of, set_threads
from workers.engine.registry import EngineSpec
from workers.engine.sampler import Sampler
from workers.engine.sequence import LiveSequence
from workers.engine.trial import run_to_end
from workers.engine.vocabulary import Vocabulary

#: No child processes, and the model runner whose logits processors `vllm_backend` knows.
NEEDED = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}
#: Unless the environment says otherwise: nothing is reported to vLLM's makers, and its log is short and on stderr.
WANTED = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}
CPU_BLOCK = 128  # tokens; vLLM's own choice on a CPU


def build(spec: EngineSpec, **more: Any) -> BatchingEngine:
    """The registry's entry: describe, load, warm up. `more` are arguments for vLLM, for tests."""
    os.environ.update(NEEDED | {name: os.environ.get(name, value) for name, value in WANTED.items()})
    try:
        from vllm.platforms import current_platform

        from workers.engine.vllm_backend import VllmBackend
    except ModuleNotFoundError as error:
        raise ValueError(f"the engine vllm needs vLLM, in an environment of its own: {error}") from error
    device = str(current_platform.device_type)
    if spec.device not in ("auto", device):
        raise ValueError(f"device is {spec.device!r}, and this build of vLLM is for {device!r}")
    set_threads()  # vLLM makes torch's own setting useless once it has begun
    spec.say(f"loading the tokenizer of {spec.path}")
    known = describe_files(spec.path, spec.max_model_len)
    arguments = plan(spec, known, device) | more
    spec.say(f"loading {spec.path} with vLLM on {device}, dtype {arguments['dtype']}")
    backend = VllmBackend(Sampler(Vocabulary(known.tokenizer)), known.profile.vocab_size, arguments)
    warm_up(backend, known)
    engine = engine_around(backend, known, spec.max_num_seqs)
    spec.say("ready")
    return engine


def plan(spec: EngineSpec, known: Description, device: str) -> dict[str, Any]:
    """The arguments for vLLM."""
    dtype = dtype_of(spec.dtype)
    if dtype == "auto":  # vLLM's own would turn fp32 into half precision
        dtype = known.config.dtype
    arguments = {
        "model": spec.path,
        "dtype": "auto" if dtype is None else str(dtype).removeprefix("torch."),
        "max_num_seqs": spec.max_num_seqs,
        "max_num_batched_tokens": max(CUDA_BATCH_TOKENS, spec.max_num_seqs),
        "max_model_len": known.profile.max_model_len if spec.max_model_len else -1,  # -1: what fits
        "async_scheduling": False,  # a token is chosen after the one before it
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # not the model's: what it recommends is in our profile
        "disable_log_stats": True,
    }
    if device != "cpu":
        return arguments
    # vLLM would take nearly all of the machine's memory, and compile for minutes.
    shape = SimpleNamespace(config=known.config, device=torch.device(device), dtype=dtype or torch.float32)
    budget = plan_budget(spec, shape, known.profile.max_model_len)
    tokens = budget.kv_tokens + spec.max_num_seqs * CPU_BLOCK  # the last block of each is not full
    return arguments | {
        "max_num_batched_tokens": max(budget.max_batch_tokens, spec.max_num_seqs),
        "max_model_len": min(known.profile.max_model_len, budget.kv_tokens),
        "kv_cache_memory_bytes": tokens * kv_bytes_per_token(shape),
        "enforce_eager": True,
    }


def warm_up(backend: Backend, known: Description) -> None:
    """Make two tokens, so that a model which cannot run fails here and not with somebody's answer."""
    request = Request("warm-up", [0, 1], Sampling(max_tokens=2, seed=0))
    run_to_end(backend, [LiveSequence(request, known.tokenizer, ())])
