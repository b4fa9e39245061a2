"""Settings: from the environment only, checked by name, frozen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.errors import BadConfig
from tasks.settings import Settings, load_settings, redis_url


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of whoever runs the tests."""
    for name in os.environ:
        if name.upper().startswith("PENSTOCK_") or name == "REDIS_URL":
            monkeypatch.delenv(name)


def test_defaults_environment_and_overrides_in_this_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (load_settings().port, load_settings().lease_s) == (8000, 5.0)
    monkeypatch.setenv("PENSTOCK_PORT", "9000")
    assert load_settings().port == 9000
    assert load_settings(port=1).port == 1


@pytest.mark.parametrize("name", ["PENSTOCK_LEASES_S", "penstock_leases_s"])
def test_an_unknown_variable_is_refused_with_a_suggestion(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(
        BadConfig, match=f"{name} is not a setting of Penstock. Did you mean PENSTOCK_LEASE_S"
    ) as caught:
        load_settings()
    assert caught.value.param == name


def test_a_variable_like_none_of_ours_points_to_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_QQQQQQ", "1")
    with pytest.raises(BadConfig, match=r"PENSTOCK_QQQQQQ .* docs/settings.md"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("PORT", "x"),
            ("PORT", "70000"),
            ("LEASE_S", "0"),
            ("API_PROCESSES", "0"),
            ("KEEPALIVE_S", "60"),
            ("PORT", ""),
        ],
        *[
            ("LEASE_S", "inf"),
            ("ORPHAN_S", "inf"),
            ("RETENTION_S", "9" * 20),
            ("LOG_LEVEL", "LOUD"),
            ("LOG_LEVEL", "info"),
            ("APPENDFSYNC", "no"),
        ],
    ],
)
def test_a_bad_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"PENSTOCK_{name}", value)
    with pytest.raises(BadConfig, match=f"PENSTOCK_{name}: .*{value}"):
        load_settings()


def test_an_unknown_override_is_refused() -> None:
    with pytest.raises(BadConfig, match="PENSTOCK_PORTS"):
        load_settings(ports=1)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().port = 1


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_redis_url_comes_from_the_first_place_that_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadConfig, match="PENSTOCK_REDIS_URL"):
        redis_url(load_settings(data_dir=tmp_path))
    (tmp_path / "redis.url").write_text("redis://file\n")
    assert redis_url(load_settings(data_dir=tmp_path)) == "redis://file"
    monkeypatch.setenv("REDIS_URL", "redis://plain")
    assert redis_url(load_settings(data_dir=tmp_path)) == "redis://plain"
    monkeypatch.setenv("PENSTOCK_REDIS_URL", "redis://ours")
    assert redis_url(load_settings(data_dir=tmp_path)) == "redis://ours"


@pytest.mark.parametrize("url", ["http://u:secret@h", "redis://:secret@h:port/0", "redis://:sec:ret@[h/0", "localhost"])
def test_what_is_no_redis_url_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(BadConfig, match="REDIS_URL: no URL of a Redis") as caught:
        redis_url(load_settings())
    assert "sec" not in caught.value.message
