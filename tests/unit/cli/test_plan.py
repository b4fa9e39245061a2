"""What would run, with which GPUs, ports and environment."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cli.plan import Plan, check_installed, check_port, parse_gpus, reachable, resolve, split_gpus, write_single
from tasks.catalog import Catalog, ModelEntry, load_catalog
from tasks.errors import BadConfig
from tasks.settings import Settings, load_settings
from tests.processes import free_port

MODELS = """
[[model]]
name = "org/one"
engine = "fake"
gpus = [0, 1, 2, 3]
replicas = 2

[[model]]
name = "two"
engine = "fake"
"""


def make_plan(folder: Path, monkeypatch: pytest.MonkeyPatch, **environ: str) -> Plan:
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    (folder / "models.toml").write_text(MODELS)
    settings = resolve(load_settings(port=0, flower_port=0), flower=True)
    return Plan(settings, load_catalog(settings.models), True, "redis://given")


@pytest.mark.parametrize(
    ("gpus", "replicas", "shares"),
    [
        ([], 2, [[], []]),
        ([0, 1, 2, 3], 2, [[0, 1], [2, 3]]),
        ([0, 1, 2], 2, [[0], [1, 2]]),
        ([5], 1, [[5]]),
        ([0, 1], 3, [[0], [1], [0]]),
        ([0], 0, []),
    ],
)
def test_gpus_are_split_over_replicas(gpus: list[int], replicas: int, shares: list[list[int]]) -> None:
    assert split_gpus(gpus, replicas) == shares


def test_every_replica_is_a_worker_with_its_own_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_plan(tmp_path, monkeypatch, PENSTOCK_THREADS="3").workers()
    assert [part.name for part in parts] == ["worker-org+one-0", "worker-org+one-1", "worker-two-0"]
    assert [part.env.get("PENSTOCK_GPUS") for part in parts] == ["0,1", "2,3", None]
    assert [part.env["PENSTOCK_MODEL"] for part in parts] == ["org/one", "org/one", "two"]
    assert {part.env["PENSTOCK_THREADS"] for part in parts} == {"3"}


def test_no_two_models_share_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path, monkeypatch)
    names = ["a/b", "a-b", "a:b", "a_b", "a.b"]
    entries = Catalog([ModelEntry(name=name, engine="fake") for name in names])
    parts = Plan(plan.settings, entries, False, "redis://given").workers()
    assert len({part.name for part in parts}) == len(names)


def test_children_get_absolute_paths_and_only_their_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path, monkeypatch, PENSTOCK_LEASE_S="2", PENSTOCK_REDIS_PORT="0", PENSTOCK_GPUS="7")
    api, flower, worker = plan.api(), plan.flower_part(), plan.workers()[2]
    for part in (api, flower, worker):
        assert part.env["PENSTOCK_DATA_DIR"] == str(tmp_path / ".penstock")
        assert part.env["PENSTOCK_MODELS"] == str(tmp_path / "models.toml")
        assert part.env["PENSTOCK_LEASE_S"] == "2"
        assert "PENSTOCK_REDIS_PORT" not in part.env
        assert "redis://given" not in " ".join([*part.argv, *part.env.values()])
    assert api.env["PENSTOCK_PORT"] == str(plan.settings.port) != "0"
    assert "PENSTOCK_PORT" not in worker.env
    assert "PENSTOCK_MODEL" not in api.env
    assert worker.env["PENSTOCK_GPUS"] == "7"
    assert "--read_only=True" in flower.argv
    assert "FLOWER_UNAUTHENTICATED_API" not in flower.env


def test_a_taken_port_names_its_setting(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(BadConfig, match=f"port {port} on 127.0.0.1: .*in use: set PENSTOCK_FLOWER_PORT"):
            resolve(Settings(port=0, flower_port=port), flower=True)
        assert resolve(Settings(port=0, flower_port=port), flower=False).flower_port == port


def test_one_port_cannot_be_given_twice() -> None:
    port = free_port()
    with pytest.raises(BadConfig, match="given twice: set PENSTOCK_FLOWER_PORT"):
        resolve(Settings(port=port, flower_port=port), flower=True)


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(BadConfig, match="set PENSTOCK_PORT"):
        check_port("192.0.2.1", 0, "PENSTOCK_PORT", set())


def test_gpus_that_are_no_numbers_are_refused() -> None:
    assert parse_gpus("") == []
    assert parse_gpus("0, 1") == [0, 1]
    with pytest.raises(BadConfig, match="PENSTOCK_GPUS"):
        parse_gpus("a")


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "[::1]"), ("10.0.0.1", "10.0.0.1")]
)
def test_urls_lead_somewhere(host: str, url: str) -> None:
    assert reachable(host) == url


def test_a_single_local_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    file = write_single(tmp_path / "data", "my-model", "", {"dtype": "float32"})
    entry = load_catalog(file).entries["my-model"]
    assert (entry.path, entry.dtype) == (str(tmp_path / "my-model"), "float32")


def test_a_single_hub_model_keeps_its_id(tmp_path: Path) -> None:
    assert load_catalog(write_single(tmp_path, "Qwen/Qwen3-0.6B", "", {})).entries["Qwen/Qwen3-0.6B"].path
    assert load_catalog(write_single(tmp_path, "Qwen/Qwen3-0.6B", "q", {})).entries["q"].path == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize("model", ["./gone", "/gone/away", "gone", "a/b/c"])
def test_a_single_model_that_is_not_there(tmp_path: Path, model: str) -> None:
    with pytest.raises(BadConfig, match="no such folder"):
        write_single(tmp_path, model, "", {})


def test_a_name_that_cannot_be_served(tmp_path: Path) -> None:
    (tmp_path / "böse \"name'").mkdir()
    with pytest.raises(BadConfig, match="name"):
        write_single(tmp_path, str(tmp_path / "böse \"name'"), "", {})


def test_a_package_that_a_model_needs_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("torchao", "bitsandbytes") else name)
    check_installed(Catalog([ModelEntry(name="a", path="x/y")]))
    check_installed(
        Catalog([ModelEntry(name="a", engine="fake", quantization="int8")])
    )  # the engine refuses it by name
    for quantization, package in (("int8", "torchao"), ("nf4", "bitsandbytes")):
        entry = ModelEntry.model_validate({"name": "a", "path": "x/y", "quantization": quantization})
        with pytest.raises(BadConfig, match=rf"the package {package} is missing: pip install 'penstock\[quant\]'"):
            check_installed(Catalog([entry]))


@pytest.mark.parametrize(
    ("engine", "absent", "remedy"),
    [
        ("transformers", {"torch"}, r"torch .*penstock\[worker\]"),
        ("onnx", {"torch", "onnxruntime"}, r"torch .*penstock\[worker\]"),
        ("onnx", {"onnxruntime"}, r"onnxruntime .*penstock\[onnx\]"),
    ],
)
def test_a_package_that_an_engine_needs_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, engine: str, absent: set[str], remedy: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in absent else object())
    check_installed(Catalog([ModelEntry(name="scripted", engine="fake")]))
    with pytest.raises(BadConfig, match=remedy):
        check_installed(Catalog([ModelEntry(name="a", engine=engine, path="x")]))
