"""What `penstock up` will run, decided before anything starts: settings, models, ports and the environment of each part.

Pure but for the checks: nothing is started and nothing is written here but an effective models.toml in the data directory.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.processes import Part
from tasks.catalog import Catalog, ModelEntry, load_catalog
from tasks.errors import BadConfig
from tasks.settings import PREFIX, Settings
from workers.engine.registry import QUANTIZED_BY

#: Settings that belong to one part, or that the supervisor resolves itself.
RESOLVED = ("host", "port", "flower_port", "redis_port", "data_dir", "models", "model", "gpus", "threads")


@dataclass(frozen=True)
class Plan:
    """All that is known before the start. `settings` is resolved: absolute paths, real ports."""

    settings: Settings
    catalog: Catalog
    flower: bool
    redis_url: str

    @property
    def api_url(self) -> str:
        """Where people on this machine reach the API."""
        return f"http://{reachable(self.settings.host)}:{self.settings.port}"

    @property
    def flower_url(self) -> str:
        """Where people on this machine reach Flower."""
        return f"http://{reachable(self.settings.host)}:{self.settings.flower_port}"

    def workers(self) -> list[Part]:
        """One part per replica of every model."""
        total = sum(entry.replicas for entry in self.catalog.entries.values())
        threads = self.settings.threads or max(1, _cores() // max(1, total))
        return [
            self._worker(entry, replica, gpus, threads)
            for entry in self.catalog.entries.values()
            for replica, gpus in enumerate(split_gpus(self._gpus(entry), entry.replicas))
        ]

    def api(self) -> Part:
        """The API."""
        own = {
            "PENSTOCK_HOST": self.settings.host,
            "PENSTOCK_PORT": str(self.settings.port),
            # For the link on the page; 0: there is no Flower to link to.
            "PENSTOCK_FLOWER_PORT": str(self.settings.flower_port if self.flower else 0),
        }
        return Part("api", "the API", (sys.executable, "-m", "api"), self._env(own))

    def flower_part(self) -> Part:
        """Flower, a read-only view."""
        options = (f"--address={self.settings.host}", f"--port={self.settings.flower_port}", "--read_only=True")
        argv = (sys.executable, "-m", "celery", "-A", "tasks.app", "flower", *options)
        return Part("flower", "Flower", argv, self._env({}))

    def _worker(self, entry: ModelEntry, replica: int, gpus: list[int], threads: int) -> Part:
        # neither sign may stand in a model's name, so no two models share a log
        name = f"{entry.name.replace('/', '+').replace(':', '=')}-{replica}"
        own = {
            "PENSTOCK_MODEL": entry.name,
            "PENSTOCK_GPUS": ",".join(map(str, gpus)),
            "PENSTOCK_THREADS": str(threads),
        }
        argv = (sys.executable, "-m", "celery", "-A", "workers.main", "worker")
        return Part(f"worker-{name}", f"worker {entry.name} #{replica}", argv, self._env(own))

    def _gpus(self, entry: ModelEntry) -> list[int]:
        return entry.gpus or parse_gpus(self.settings.gpus)

    def _env(self, own: Mapping[str, str]) -> dict[str, str]:
        """The user's environment, with our settings resolved and those of other parts left out."""
        foreign = {PREFIX + name.upper() for name in RESOLVED}
        env = {name: value for name, value in os.environ.items() if name not in foreign}
        env["PENSTOCK_DATA_DIR"] = str(self.settings.data_dir)
        env["PENSTOCK_MODELS"] = str(self.settings.models)
        env["PYTHONUNBUFFERED"] = "1"
        return env | {name: value for name, value in own.items() if value}


def split_gpus(gpus: list[int], replicas: int) -> list[list[int]]:
    """The GPUs of each replica: even shares in order; with fewer GPUs than replicas they are shared in turn."""
    if not gpus or not replicas:
        return [[] for _ in range(replicas)]
    if len(gpus) < replicas:
        return [[gpus[replica % len(gpus)]] for replica in range(replicas)]
    bounds = [len(gpus) * replica // replicas for replica in range(replicas + 1)]
    return [gpus[low:high] for low, high in itertools.pairwise(bounds)]


def parse_gpus(text: str) -> list[int]:
    """PENSTOCK_GPUS, as in 0,1."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise BadConfig(f"PENSTOCK_GPUS: numbers with commas between them, as in 0,1 (got {text!r})") from None


def resolve(settings: Settings, flower: bool) -> Settings:
    """The settings with absolute paths and real ports. Raises `BadConfig` naming the setting of a taken port."""
    ports = {"port": settings.port, "redis_port": settings.redis_port}
    if flower:
        ports["flower_port"] = settings.flower_port
    real: dict[str, Any] = {}
    for name, port in ports.items():
        host = "127.0.0.1" if name == "redis_port" else settings.host
        real[name] = check_port(host, port, PREFIX + name.upper(), set(real.values()))
    paths = {"data_dir": settings.data_dir.expanduser().resolve(), "models": settings.models.expanduser().resolve()}
    return settings.model_copy(update=real | paths)


def check_port(host: str, port: int, setting: str, chosen: set[int]) -> int:
    """A port that can be listened on; 0 picks a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if port in chosen:
        raise BadConfig(f"port {port} is given twice: set {setting} to another one", param=setting)
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(1)
        except OSError as error:
            raise BadConfig(
                f"port {port} on {host}: {error.strerror}: set {setting} to another one", param=setting
            ) from None
        return int(sock.getsockname()[1])


def check_installed(catalog: Catalog) -> None:
    """Refuse to start what cannot run for want of a package."""
    needed = {"fastapi": "api"}
    engines = {entry.engine for entry in catalog.entries.values()}
    if engines & {"transformers", "onnx"}:
        needed["torch"] = "worker"
    if "onnx" in engines:
        needed["onnxruntime"] = "onnx"
    used = {entry.quantization for entry in catalog.entries.values() if entry.engine == "transformers"}
    needed |= {package: "quant" for name, package in QUANTIZED_BY.items() if name in used}
    for module, extra in needed.items():
        if importlib.util.find_spec(module) is None:
            raise BadConfig(f"the package {module} is missing: pip install 'penstock[{extra}]'")


def write_single(folder: Path, model: str, name: str, options: Mapping[str, Any]) -> Path:
    """An effective models.toml for `--model`: a local folder, or a hub id."""
    local = Path(model).expanduser()
    if (
        not local.is_dir()
        and options.get("engine") != "fake"
        and (model[:1] in (".", "/", "~") or model.count("/") != 1)
    ):
        raise BadConfig(
            f"--model {model}: there is no such folder, and a hub id looks like Qwen/Qwen3-0.6B", param="model"
        )
    path = str(local.resolve()) if local.is_dir() else model
    row = {"name": name or (local.resolve().name if local.is_dir() else model), "path": path, **options}
    # TOML's basic strings and numbers are JSON's
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in row.items() if value is not None]
    file = folder / "models.toml"
    file.write_text("# Written by `penstock up --model`.\n[[model]]\n" + "\n".join(lines) + "\n", encoding="utf-8")
    load_catalog(file)
    return file


def reachable(host: str) -> str:
    """An address for URLs: 0.0.0.0 and :: listen everywhere but lead nowhere."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
