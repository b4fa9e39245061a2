"""Writes the parts of the documentation that the code knows better, so that they cannot drift.

`python docs/generate.py` rewrites them, `--check` only says whether they are current (the tests do that). A generated
part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pydantic import BaseModel

from tasks import keys
from tasks.catalog import ModelEntry
from tasks.jobs import TRANSITIONS
from tasks.settings import PREFIX, Settings
from tasks.tenants import Tenant

ROOT = Path(__file__).parent.parent


def job_states() -> str:
    """The job's state machine as a Mermaid diagram."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> queued: submitted"]
    lines += [f"    {a} --> {b}: {why}" for a, targets in TRANSITIONS.items() for b, why in targets.items()]
    lines += [f"    {state} --> [*]" for state in TRANSITIONS if state.terminal]
    return "\n".join([*lines, "```"])


def redis_keys() -> str:
    """The key table of tasks/keys.py."""
    assert keys.__doc__ is not None
    table = keys.__doc__.split("\n\n")[1]
    return f"```\n{table}\n```"


def fields(model: type[BaseModel], prefix: str = "") -> str:
    """A table of a settings class: name, default, meaning."""
    rows = ["| name | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else f"`{field.default}`" if field.default != "" else "empty"
        rows.append(f"| `{prefix}{name.upper() if prefix else name}` | {default} | {field.description} |")
    return "\n".join(rows)


PARTS = {
    "job states": job_states,
    "redis keys": redis_keys,
    "settings": lambda: fields(Settings, PREFIX),
    "models.toml": lambda: fields(ModelEntry),
    "tenants.toml": lambda: fields(Tenant),
}


def render(text: str) -> str:
    """The text with every generated part made anew. Raises KeyError for a part that nobody generates."""
    return re.sub(
        r"<!-- generated: (.+?) -->\n.*?<!-- end -->",
        lambda match: f"<!-- generated: {match[1]} -->\n{PARTS[match[1]]()}\n<!-- end -->",
        text,
        flags=re.S,
    )


def main() -> int:
    """Rewrite, or with --check only compare; 1 if something is stale."""
    stale = 0
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        fresh = render(text)
        if fresh == text:
            continue
        if "--check" in sys.argv:
            sys.stderr.write(f"{path.relative_to(ROOT)} is stale: run python docs/generate.py\n")
            stale = 1
        else:
            path.write_text(fresh, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
