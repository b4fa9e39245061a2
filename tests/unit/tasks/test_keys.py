"""The names of the keys, and that the scripts and the documented table agree."""

from __future__ import annotations

import re
from importlib.resources import files

from tasks import keys, lua
from tasks.keys import FAMILIES, PERMANENT, SINGLES, key, queue_of, single

DOCUMENTED = set(re.findall(r"^(penstock[:.]\S+)", keys.__doc__ or "", re.MULTILINE))


def pattern(name: str) -> str:
    """A key's documented form without its identifiers."""
    return re.sub(r"<.*$", "", name)


def test_every_key_is_documented_and_every_documented_key_exists() -> None:
    assert {pattern(name) for name in DOCUMENTED} == set(FAMILIES.values()) | set(SINGLES.values())
    assert len(DOCUMENTED) == len(FAMILIES) + len(SINGLES)


def test_the_permanent_ones_are_documented_as_such() -> None:
    rows = [line.split() for line in (keys.__doc__ or "").splitlines() if line.startswith("penstock")]
    permanent = {pattern(row[0]) for row in rows if row[-1] == "permanent"}
    assert permanent == {SINGLES.get(name) or FAMILIES[name] for name in PERMANENT}


def test_the_scripts_use_no_key_that_is_not_in_the_table() -> None:
    names = set(FAMILIES) | {f"{name}_" for name in SINGLES}
    used: set[str] = set()
    for script in (*lua.COMMON, *lua.NAMES):
        text = (files("tasks") / "scripts" / f"{script}.lua").read_text()
        used |= set(re.findall(r"\bK\.(\w+)", text))
        assert "penstock" not in text, f"{script}.lua spells a key out"
    assert used <= names
    assert names - used == {"profile"}  # only Python writes it


def test_every_script_is_listed() -> None:
    there = {path.name.removesuffix(".lua") for path in (files("tasks") / "scripts").iterdir()}
    assert there == {*lua.COMMON, *lua.NAMES}


def test_names_are_built_in_one_way() -> None:
    assert key("job", "x") == "penstock:job:x"
    assert queue_of("demo") == "penstock.demo"
    assert single("leases") == "penstock:leases"
    assert "job = 'penstock:job:'" in keys.lua_table()
    assert "leases_ = 'penstock:leases'" in keys.lua_table()
