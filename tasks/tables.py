"""Reads a TOML file that is a list of tables, as models.toml and tenants.toml are: every key is checked by name."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tasks.errors import BadConfig

Row = TypeVar("Row", bound=BaseModel)


def read_rows(path: Path, table: str, row: type[Row], variable: str) -> list[tuple[str, Row]]:
    """Every `[[table]]` of the file, with a label for messages about it; `variable` is the setting that names the file.

    Raises `BadConfig` naming the file, the key and the remedy.
    """
    param = variable.removeprefix("PENSTOCK_").lower()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadConfig(f"{path} does not exist: create it, or set {variable}", param=param) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise BadConfig(f"{path}: {error}", param=param) from None
    unknown = sorted(set(data) - {table})
    if unknown:
        text = f"{path}: unknown key {unknown[0]!r}; a {table} is a [[{table}]] table"
        raise BadConfig(text, param=param)
    rows = data.get(table, [])
    if not isinstance(rows, list):
        raise BadConfig(f"{path}: a {table} is a [[{table}]] table", param=param)
    return [_check(one, f"{path}: {table} {number}", table, row) for number, one in enumerate(rows, 1)]


def _check(data: Any, label: str, table: str, row: type[Row]) -> tuple[str, Row]:
    if not isinstance(data, dict):
        raise BadConfig(f"{label}: a {table} is a [[{table}]] table")
    label += f" ({data['name']})" if "name" in data else ""
    try:
        return label, row.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(row.model_fields)
        remedy = f"known keys: {known}" if first["type"] == "extra_forbidden" else str(first["msg"])
        raise BadConfig(f"{label}: key {name!r}: {remedy}", param=name) from None
