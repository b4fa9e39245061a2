"""The servers that one could run instead of Penstock, and the choice of what runs in a comparison."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import toy_model
from bench.pools import ROOT, Part, Pool, System, penstock
from bench.servers import free_port

SYSTEMS = ("penstock", "fastchat", "transformers serve", "vllm")


def add_environments(parser: argparse.ArgumentParser) -> None:
    """The options that say where the others are installed."""
    parser.add_argument("--fastchat", type=Path, default=ROOT / ".venv-fastchat/bin/python")
    parser.add_argument("--vllm", type=Path, default=ROOT / ".venv-vllm/bin/python")


def build(folder: Path, pool: Pool, options: argparse.Namespace) -> list[System]:
    """The systems of `options` that can run here, with the model in `folder`; says which cannot."""
    path = folder if pool.fake else toy_model.save(folder)
    makers = {
        "penstock": lambda: penstock(pool, path),
        "fastchat": lambda: fastchat(options.fastchat.absolute(), toy_model.save_for_transformers_4(path)),
        "transformers serve": lambda: transformers_serve(path),
        "vllm": lambda: vllm(options.vllm.absolute(), path),
    }
    chosen = [makers[name]() for name in options.systems]
    for system in chosen:
        if system.missing:
            say(f"{system.name} is skipped: {system.missing}")
    return [system for system in chosen if not system.missing]


def say(text: str) -> None:
    """Progress, beside the tables on stdout."""
    print(text, file=sys.stderr, flush=True)


def fastchat(python: Path, path: Path) -> System:
    """FastChat's controller, one model worker and its OpenAI server."""

    def parts(folder: Path, port: int) -> list[Part]:
        control, work = free_port(), free_port()
        controller, worker = f"http://127.0.0.1:{control}", f"http://127.0.0.1:{work}"
        module = [str(python), "-m"]
        local = ["--host", "127.0.0.1", "--port"]
        serve = ["--controller-address", controller, "--worker-address", worker, "--model-path", str(path)]
        device = ["--device", "cpu", "--conv-template", "raw"]
        api = [*module, "fastchat.serve.openai_api_server", *local, str(port), "--controller-address", controller]
        return [
            Part("controller", [*module, "fastchat.serve.controller", *local, str(control)], control),
            Part("worker", [*module, "fastchat.serve.model_worker", *local, str(work), *serve, *device], work),
            Part("api", api, port),
        ]

    return System("fastchat", parts, missing=_without(python, "make bench-peers"))


def transformers_serve(path: Path) -> System:
    """`transformers serve` with continuous batching, of the environment that this runs in."""
    command = Path(sys.executable).with_name("transformers")

    def parts(folder: Path, port: int) -> list[Part]:
        (folder / "hub").mkdir(exist_ok=True)
        serve = [str(command), "serve", str(path), "--continuous-batching", "--host", "127.0.0.1", "--port", str(port)]
        return [Part("server", serve, port, {"HF_HOME": str(folder)})]

    return System("transformers serve", parts, str(path), _without(command, "make install"))


def vllm(python: Path, path: Path) -> System:
    """vLLM's OpenAI server on a CPU. Its tool `vllm` does not start with the CPU build: the module does."""

    def parts(folder: Path, port: int) -> list[Part]:
        serve = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(path), "--port", str(port)]
        options = [
            "--host",
            "127.0.0.1",
            "--served-model-name",
            toy_model.NAME,
            "--dtype",
            "float32",
            "--enforce-eager",
        ]
        env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
        return [Part("server", [*serve, *options, "--disable-log-stats"], port, env)]

    return System("vllm", parts, missing=_without(python, "make bench-peers"))


def _without(program: Path, remedy: str) -> str:
    return "" if program.exists() else f"{program} is missing: {remedy}"
