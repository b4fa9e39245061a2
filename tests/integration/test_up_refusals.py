"""What `penstock up` refuses before it starts anything: one clear line, exit code 2, and nothing left running."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner, Result

from cli.main import app
from tests.integration.up_rig import MODELS, penstock
from tests.processes import free_port


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, and no settings but PENSTOCK_PORT."""
    for name in [name for name in os.environ if name.startswith(("PENSTOCK_", "REDIS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PENSTOCK_PORT", "0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str, **environ: str) -> Result:
    return CliRunner().invoke(app, args, env=environ)


def up(*args: str, **environ: str) -> str:
    """The one line with which `penstock up` refuses to start."""
    done = run("up", "--no-flower", *args, **environ)
    assert done.exit_code == 2, done.output
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (MODELS + "lanes = 3\n", "model 1 (fake): key 'lanes': known keys: name, path"),
        ('[[model]]\nname = "a"\npath = "./gone"\n', "key 'path': there is no folder"),
        (MODELS + MODELS, "model name 'fake' is used twice"),
        ("[[model]\n", "models.toml: "),
    ],
)
def test_models(folder: Path, models: str, words: str) -> None:
    (folder / "models.toml").write_text(models)
    assert words in up()
    assert [path.name for path in folder.iterdir()] == ["models.toml"]


def test_no_models(folder: Path) -> None:
    assert "models.toml does not exist: create it, or set PENSTOCK_MODELS" in up()


def test_settings(folder: Path) -> None:
    (folder / "models.toml").write_text(MODELS)
    assert "PENSTOCK_PROT is not a setting of Penstock. Did you mean PENSTOCK_PORT?" in up(PENSTOCK_PROT="1")
    assert "PENSTOCK_LEASE_S: Input should be greater than" in up(PENSTOCK_LEASE_S="0")
    assert "PENSTOCK_MODEL is for a single worker" in up(PENSTOCK_MODEL="fake")


def test_options_that_exclude_each_other(folder: Path) -> None:
    assert "--model and --models exclude each other" in up("--model", "a/b", "--models", "models.toml")
    assert "--name goes with --model" in up("--name", "x")
    assert "--model ./gone: there is no such folder" in up("--model", "./gone")


def test_a_taken_port(folder: Path) -> None:
    (folder / "models.toml").write_text(MODELS)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = str(sock.getsockname()[1])
        for setting in ("PENSTOCK_PORT", "PENSTOCK_REDIS_PORT"):
            line = up(**{setting: port})
            assert f"port {port} on 127.0.0.1: Address already in use: set {setting} to another one" in line


def test_a_data_dir_that_cannot_be_made(folder: Path) -> None:
    (folder / "models.toml").write_text(MODELS)
    assert "models.toml/x: Not a directory: set PENSTOCK_DATA_DIR" in up("--data-dir", "models.toml/x")


def test_a_given_redis_that_is_away(folder: Path) -> None:
    (folder / "models.toml").write_text(MODELS)
    address = f"127.0.0.1:{free_port()}"
    line = up(REDIS_URL=f"redis://:secret@{address}/0")
    assert f"Redis at {address}: " in line
    assert "start it, or unset PENSTOCK_REDIS_URL" in line
    assert "secret" not in line


def test_a_given_redis_that_evicts(folder: Path, redis_url: str) -> None:
    (folder / "models.toml").write_text(MODELS)
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            line = up(PENSTOCK_REDIS_URL=redis_url)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert (
        "may evict jobs (maxmemory-policy allkeys-lru): run `redis-cli CONFIG SET maxmemory-policy noeviction`" in line
    )


def test_the_exit_code_and_the_line_of_the_real_command(folder: Path) -> None:
    (folder / "models.toml").write_text(MODELS + "lanes = 3\n")
    done = penstock(folder, "up")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("penstock: models.toml: model 1 (fake): key")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command", [["jobs"], ["status"], ["workers"], ["cancel", "job_x"], ["submit", "hi"], ["chat"]], ids=lambda c: c[0]
)
def test_commands_without_an_api(command: list[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run(*command, "--url", url)
    assert done.exit_code == 1
    assert done.stderr == f"penstock: nothing answers at {url}: start it with `penstock up`, or give --url\n"


@pytest.mark.parametrize("command", ["up", "chat", "submit", "jobs", "cancel", "status", "workers"])
def test_help_has_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert f"penstock {command}" in done.stdout.split("Example", 1)[1]
