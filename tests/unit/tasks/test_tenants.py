"""tenants.toml: whose a key is, and that every mistake is named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tasks.errors import BadConfig
from tasks.rates import Rate, Rates
from tasks.tenants import EVERYBODY, Tenant, load_tenants

DIGEST = hashlib.sha256(b"secret").hexdigest()


def write(folder: Path, text: str) -> str:
    path = folder / "tenants.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_without_a_file_everybody_is_one_tenant() -> None:
    tenants = load_tenants("")
    assert tenants.of("") is tenants.of("Bearer secret") is EVERYBODY
    assert EVERYBODY.may("interactive")
    assert EVERYBODY.rates(0, 0) is None


def test_a_key_finds_its_tenant_and_every_other_the_default_one(tmp_path: Path) -> None:
    text = f'[[tenant]]\nname = "a"\nkey_sha256 = ["{DIGEST}"]\n[[tenant]]\nname = "default"\nmax_waiting = 3\n'
    tenants = load_tenants(write(tmp_path, text))
    assert [tenants.of(f"{scheme} secret ").name for scheme in ("Bearer", "bearer")] == ["a", "a"]
    for header in ("", "Bearer other", "Basic secret", "Bearer", f"Bearer {DIGEST}"):
        assert (tenants.of(header).name, tenants.of(header).max_waiting) == ("default", 3)


def test_bands_and_rates() -> None:
    slow = Tenant(name="slow", max_priority="normal", tokens_per_minute=60)
    assert [slow.may(band) for band in ("interactive", "normal", "batch")] == [False, True, True]
    assert slow.rates(0, 45) == Rates(None, Rate(60, 45))
    assert slow.rates(0, -9) == Rates(None, Rate(60, 0))
    assert Rate(60, 45).reset_s == 15


@pytest.mark.parametrize(
    ("line", "param"),
    [("weight = 0", "weight"), ("weight = nan", "weight"), ('max_priority = "high"', "max_priority"),
     ("max_running = -1", "max_running"), ('key_sha256 = ["secret"]', "key_sha256.0"), ("max_run = 1", "max_run")],
)  # fmt: skip
def test_a_wrong_value_is_named(tmp_path: Path, line: str, param: str) -> None:
    path = write(tmp_path, f'[[tenant]]\nname = "a"\n{line}\n')
    with pytest.raises(BadConfig) as caught:
        load_tenants(path)
    assert caught.value.param == param
    assert path in caught.value.message
    assert "tenant 1 (a)" in caught.value.message


@pytest.mark.parametrize(
    ("text", "part"),
    [("", ""), ('[[tenant]]\nname = "a:b"\n', "'name'"), ('[[tenant]]\nname = "a"\n[[tenant]]\nname = "a"\n', "used twice"),
     (f'[[tenant]]\nname = "a"\nkey_sha256 = ["{DIGEST}"]\n[[tenant]]\nname = "b"\nkey_sha256 = ["{DIGEST}"]\n', "two tenants"),
     ("tenant = 3", "[[tenant]] table"), ('[[tenants]]\nname = "a"\n', "unknown key 'tenants'"), ("[[", "tenants.toml")],
)  # fmt: skip
def test_a_wrong_file_is_named(tmp_path: Path, text: str, part: str) -> None:
    path = write(tmp_path, text)
    if not text:
        assert load_tenants(path).of("").name == "default"
        return
    with pytest.raises(BadConfig) as caught:
        load_tenants(path)
    assert path in caught.value.message
    assert part in caught.value.message


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(BadConfig, match="PENSTOCK_TENANTS"):
        load_tenants("nowhere.toml")
