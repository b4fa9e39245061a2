"""The engines under the contract suite, each with prompts it understands and ways to make it fail on purpose."""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tasks.sampling import Sampling
from tests.onnx_exports import HAS_BUILDER
from workers.engine.base import Event, Request
from workers.engine.batching import BatchingEngine
from workers.engine.registry import EngineSpec, build

DEMO = Path(__file__).parents[2] / "models" / "demo"
#: vLLM has an environment of its own (`make test-vllm`), in which the engine "transformers" cannot run.
VLLM = find_spec("vllm") is not None
OWN = ["fake", "transformers", "serial", *(["demo"] if (DEMO / "model.safetensors").exists() else [])]
NAMES = ["vllm"] if VLLM else OWN
NAMES += ["onnx"] if HAS_BUILDER else []


SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 3},
    "cut": {"temperature": 0.9, "seed": 4, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
    "penalised": {
        "temperature": 0.8,
        "seed": 5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.4,
        "repetition_penalty": 1.2,
        "logit_bias": {5: 2.0},
        "logprobs": 3,
    },
}


@dataclass
class Rig:
    """An engine and what tests need around it. `text(n)` is the n-th prompt; every prompt has a long answer."""

    name: str
    engine: BatchingEngine
    text: Callable[[int], str]
    tokenizer: Tokenizer = field(init=False)

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer.from_str(self.engine.profile.tokenizer)

    def request(self, rid: str, number: int = 0, **fields: Any) -> Request:
        """A greedy request for 12 tokens; `choice`, `done`, `emitted` and sampling parameters may be given."""
        own = {name: fields.pop(name) for name in ("choice", "done", "emitted", "prompt") if name in fields}
        prompt = own.pop("prompt", None) or self.tokenizer.encode(self.text(number)).ids
        sampling = Sampling(**{"max_tokens": 12, "seed": 7, "temperature": 0.0} | fields)
        return Request(rid, prompt, sampling, **own)

    def run(self, *requests: Request) -> dict[str, list[Event]]:
        for request in requests:
            self.engine.submit(request)
        return self.drain(*requests)

    def drain(self, *requests: Request) -> dict[str, list[Event]]:
        """Step until nothing is left, and check of every event what the contract says of all events."""
        events: dict[str, list[Event]] = {request.rid: [] for request in requests}
        steps = 0
        while self.engine.has_work():
            steps += 1
            assert steps < 5000
            of_step = self.engine.step()
            assert len({event.rid for event in of_step}) == len(of_step)
            for event in of_step:
                events.setdefault(event.rid, []).append(event)
        for request in requests:
            check_stream(request, events[request.rid])
        assert self.engine.step() == []
        return events


def check_stream(request: Request, events: Sequence[Event]) -> None:
    """Indices are dense, and the last event, and only that, says how the sequence ended."""
    index = len(request.done)
    for event in events:
        assert event.index == index
        index += len(event.tokens)
    assert [event.finish is not None for event in events] == [False] * (len(events) - 1) + [True]
    assert (events[-1].finish == "error") == (events[-1].error is not None) == (events[-1].code is not None)


def tokens_of(events: Sequence[Event]) -> list[int]:
    return [token for event in events for token in event.tokens]


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events)


def outcome(events: Sequence[Event]) -> tuple[list[int], str, str | None]:
    """What must not depend on neighbours, interruptions or recoveries."""
    return tokens_of(events), text_of(events), events[-1].finish


def tiny_engine(family: str = "llama", **limits: int) -> BatchingEngine:
    """The engine "transformers" on a tiny random model that never ends by itself."""
    from tests.tiny_models import fast_tokenizer, tiny_model
    from workers.engine.budget import Budget
    from workers.engine.continuous import assemble
    from workers.engine.loading import describe

    loaded = describe(copy.deepcopy(tiny_model(family)), fast_tokenizer())
    budget = {"max_num_seqs": 8, "kv_tokens": 4096, "max_batch_tokens": 256, "page_size": 16} | limits
    return assemble(loaded, Budget(**budget))


@cache
def vllm_folder(head_dim: int = 32) -> str:
    """A tiny model's files. vLLM has no attention for smaller heads on a CPU."""
    from tests.tiny_models import fast_tokenizer, tiny_model

    folder = tempfile.mkdtemp(prefix="penstock-tiny-")
    atexit.register(shutil.rmtree, folder)
    tiny_model("llama", ends=False, head_dim=head_dim).save_pretrained(folder)
    fast_tokenizer().save_pretrained(folder)
    return folder


def vllm_engine(spec: EngineSpec | None = None, **arguments: Any) -> BatchingEngine:
    """The engine "vllm", on the tiny model if nothing else is said; `arguments` are for vLLM itself."""
    from workers.engine import vllm

    with warnings.catch_warnings(action="ignore"):  # vLLM and what it imports use things that are deprecated
        return vllm.build(spec or EngineSpec(vllm_folder(), max_num_seqs=8), **arguments)


def make(name: str, max_num_seqs: int = 8) -> Rig:
    """A fresh rig."""
    if name == "fake":
        spec = EngineSpec("scripted", max_num_seqs=max_num_seqs)
        return Rig(name, build("fake", spec), lambda number: f"tale {number} [tokens=40] [step_ms=0]")
    if name == "demo":
        import tests.tiny_models  # noqa: F401  (for its thread limit)

        spec = EngineSpec(str(DEMO), device="cpu", max_num_seqs=max_num_seqs)
        return Rig(
            name, build("transformers", spec), lambda number: f"<|user|>Count from {number} to 90.<|end|><|assistant|>"
        )
    if name == "vllm":
        engine = vllm_engine(EngineSpec(vllm_folder(), max_num_seqs=max_num_seqs))
        return Rig(name, engine, lambda number: f"Line number {number} says that water falls.")
    if name == "onnx":
        from tests.onnx_exports import checkpoint, export

        spec = EngineSpec(str(export(checkpoint("llama"))), device="cpu", max_num_seqs=max_num_seqs)
        return Rig(name, build("onnx", spec), lambda number: f"Sequence number {number} says that water falls.")
    engine = tiny_engine("gemma2" if name == "serial" else "llama", max_num_seqs=max_num_seqs)
    return Rig(name, engine, lambda number: f"Sequence number {number} says that water falls.")


#: What runs the model, by engine; with vLLM it is the model itself.
FORWARD = {
    "fake": "_make",
    "serial": "_advance",
    "transformers": "_run",
    "demo": "_run",
    "onnx": "_run",
    "vllm": "forward",
}


def _forward(rig: Rig) -> tuple[Any, str]:
    backend: Any = rig.engine._backend
    return vllm_model(backend) if rig.name == "vllm" else backend, FORWARD[rig.name]


def vllm_model(backend: Any) -> Any:
    """The torch module that vLLM runs."""
    return backend._runner.model


def poison(rig: Rig, rid: str) -> str:
    """Make every forward fail that has sequence `rid` in it; returns the prompt to give it."""
    if rig.name == "fake":
        return f"{rig.text(0)} [fail_at=2]"
    backend: Any = rig.engine._backend
    owner, name = _forward(rig)
    run = getattr(owner, name)

    def fail(*given: Any, **named: Any) -> Any:
        if rid in ([given[0].rid] if rig.name == "serial" else backend.batch()):
            raise RuntimeError("made to fail")
        return run(*given, **named)

    setattr(owner, name, fail)
    return rig.text(0)


def fail_once(rig: Rig, error: Exception) -> None:
    """Make the next forward raise, after its batch was scheduled."""
    owner, name = _forward(rig)

    def fail(*_: Any, **__: Any) -> None:
        delattr(owner, name)  # the method of the class shows again
        raise error

    setattr(owner, name, fail)
