"""Every example of the README, run as a reader would run it; only the port is another."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.catalog import load_catalog
from tests.e2e.conftest import ROOT, Pool
from tests.e2e.test_first_light import counting

README = (ROOT / "README.md").read_text(encoding="utf-8")
CARD = (ROOT / "models" / "demo" / "README.md").read_text(encoding="utf-8")
PENSTOCK = str(Path(sys.executable).parent / "penstock")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def example(page: str, language: str, contains: str) -> str:
    """The one block with this in it."""
    (found,) = [block for block in blocks(page, language) if contains in block]
    return found


def run(argv: list[str]) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_example_is_left_out() -> None:
    """Whoever adds one adds its test here."""
    assert [len(blocks(README, language)) for language in ("sh", "python", "toml")] == [3, 1, 1]


def test_curl(pool: Pool) -> None:
    command = example(README, "sh", "curl").replace("http://127.0.0.1:8000", pool.url)
    lines = [line[6:] for line in run(["bash", "-c", command]).splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == counting(3, 40)


def test_the_sdk(pool: Pool) -> None:
    code = example(README, "python", "OpenAI").replace("http://127.0.0.1:8000", pool.url)
    assert run([sys.executable, "-c", code]) == counting(3, 40)


def test_the_model_card() -> None:
    assert run([sys.executable, "-c", example(CARD, "python", "generate")]).strip() == "3, 4, 5, 6<|end|>"


def test_a_model_of_your_own(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text(example(README, "toml", "[[model]]"))
    (entry,) = load_catalog(models).entries.values()
    assert (entry.path, entry.gpus, entry.replicas, entry.max_num_seqs) == ("Qwen/Qwen3-8B", [0, 1], 2, 128)
    assert "--model" in run([PENSTOCK, "up", "--help"])


def test_the_commands_and_targets_that_are_named() -> None:
    row = re.search(r"^\| in a terminal \|.*$", README, re.MULTILINE)
    assert row is not None
    names = [name.removeprefix(".venv/bin/penstock ") for name in re.findall(r"`([^`]+)`", row[0]) if name != "--help"]
    assert names == ["chat", "submit", "jobs", "cancel", "status", "workers", "bench engine"]
    for name in names:
        assert "Usage" in run([PENSTOCK, *name.split(), "--help"])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert (
        set(re.findall(r"`make ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))) <= targets
    )


@pytest.mark.parametrize("path", ["/", "/docs", "/metrics", "/readyz", "/v1/models"])
def test_the_addresses_that_are_named(pool: Pool, path: str) -> None:
    assert f"`{path}`" in README
    assert run(["curl", "-sf", f"{pool.url}{path}"])
