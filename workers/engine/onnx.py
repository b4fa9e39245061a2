"""The engine "onnx": models exported for onnxruntime-genai, run by ONNX Runtime on a CPU.

onnxruntime-genai makes the exports. Its own loops are not used: the one that batches gives tokens and no logits, the
other one gives logits and runs the same number of tokens of every sequence. So the graph is ours to run (`onnx_graph`),
batched (`onnx_batch`), and tokens are chosen by the sampler of every engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from workers.engine.assembly import announce, engine_around
from workers.engine.base import ModelProfile
from workers.engine.batching import BatchingEngine
from workers.engine.budget import Budget, size_cache
from workers.engine.check import ANSWER, check, sample_texts
from workers.engine.loading import end_tokens, profile_of, set_threads
from workers.engine.onnx_batch import OnnxBackend
from workers.engine.onnx_graph import Graph, Names
from workers.engine.paged_batch import Unsupported
from workers.engine.registry import EngineSpec
from workers.engine.sampler import Sampler
from workers.engine.vocabulary import Vocabulary

CONFIG = "genai_config.json"
#: Kernels of quantised weights round otherwise for one row than for several.
_TOLERANCE = 1e-1
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class Exported:
    """An export in memory. `eos` are the ids that end an answer."""

    graph: Graph
    tokenizer: Tokenizer
    profile: ModelProfile
    eos: frozenset[int]


def build(spec: EngineSpec) -> BatchingEngine:
    """The registry's entry: load, size the cache, check. Raises ValueError for what this engine cannot run or give."""
    exported = load(spec)
    longest = max(exported.profile.max_model_len, exported.graph.least_length)
    free = int(psutil.virtual_memory().available)
    budget = size_cache(spec, torch.device("cpu"), free, exported.graph.bytes_per_token, longest)
    try:
        engine = assemble(exported, budget)
    except Unsupported as error:
        raise ValueError(_refusal(spec, f"its sequences cannot be batched: {error}")) from error
    announce(spec, engine, exported)
    return engine


def load(spec: EngineSpec) -> Exported:
    """Load graph and tokenizer of a folder that onnxruntime-genai's model builder has written."""
    config = _config(spec)
    model, search = config["model"], config.get("search", {})
    set_threads()
    spec.say(f"loading the tokenizer of {spec.path}")
    source: Any = AutoTokenizer.from_pretrained(spec.path)
    spec.say(f"loading the graph of {spec.path}")
    try:
        graph = Graph(Path(spec.path), _names(model["decoder"]), torch.get_num_threads())
    except ModuleNotFoundError as error:
        raise ValueError("the engine onnx needs onnxruntime: pip install 'penstock[onnx]'") from error
    except ValueError as error:
        raise ValueError(_refusal(spec, str(error))) from error
    longest = int(model["context_length"])
    recommended = SimpleNamespace(**{name: search.get(name) for name in _SAMPLING})
    limit = min(longest, spec.max_model_len or longest)
    tokenizer, profile = profile_of(source, limit, graph.vocab_size, recommended)
    return Exported(graph, tokenizer, profile, end_tokens(model.get("eos_token_id"), source))


def assemble(exported: Exported, budget: Budget) -> BatchingEngine:
    """An engine around an export in memory. Raises `Unsupported` for a graph that cannot be batched."""
    graph, tokenizer = exported.graph, exported.tokenizer
    backend = OnnxBackend(graph, Sampler(Vocabulary(tokenizer)), budget)
    texts = sample_texts(graph.vocab_size, min(exported.profile.max_model_len, backend.capacity))
    try:
        expected = [_plain_logits(graph, text) for text in texts]
    except RuntimeError as error:
        raise Unsupported(str(error)) from error
    check(backend, tokenizer, _TOLERANCE, texts, expected)
    return engine_around(backend, exported, budget.max_num_seqs)


def _plain_logits(graph: Graph, text: list[int]) -> torch.Tensor:
    """The logits [answer tokens, vocabulary] from which the text's last tokens would be chosen, without any cache."""
    graph.resize(1, max(len(text), graph.least_length))
    ends = range(len(text) - ANSWER, len(text))
    return torch.cat([graph.run(0, [text[:end]], [end]) for end in ends])


def _config(spec: EngineSpec) -> dict[str, Any]:
    """genai_config.json, if this engine can give what is asked for."""
    if spec.device not in ("auto", "cpu"):
        raise ValueError(
            f"the engine onnx runs on the CPU, device = {spec.device!r} is not known to it: leave device out"
        )
    if spec.dtype not in ("auto", "float32"):
        raise ValueError(
            f"the engine onnx computes in float32, dtype = {spec.dtype!r} is not known to it; "
            "weights are quantised when a model is exported (-p int8 or int4)"
        )
    try:
        config: dict[str, Any] = json.loads((Path(spec.path) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(_refusal(spec, f"no {CONFIG} that can be read is in it")) from error
    decoder = config.get("model", {}).get("decoder", {})
    if not {"filename", "inputs", "outputs", "num_hidden_layers", "head_size"} <= decoder.keys():
        raise ValueError(_refusal(spec, f"{CONFIG} names no decoder that is one graph"))
    providers = [name for each in decoder.get("session_options", {}).get("provider_options", []) for name in each]
    if providers:
        raise ValueError(_refusal(spec, f"it was exported for {', '.join(providers)}, and not for a CPU"))
    return config


def _names(decoder: dict[str, Any]) -> Names:
    windowed = decoder.get("sliding_window", {})
    window = int(windowed["window_size"]) if windowed.get("layers") else 0
    layers, head_size = int(decoder["num_hidden_layers"]), int(decoder["head_size"])
    return Names(decoder["filename"], decoder["inputs"], decoder["outputs"], layers, head_size, window)


def _refusal(spec: EngineSpec, reason: str) -> str:
    return (
        f"the engine onnx cannot run {spec.path}: {reason}. A model is exported with: "
        "python -m onnxruntime_genai.models.builder -i MODEL_FOLDER -o EXPORT_FOLDER -p fp32 -e cpu "
        "--extra_options prune_lm_head=true"
    )
