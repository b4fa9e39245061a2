"""`penstock up`: everything on one machine, from the checks to the drain.

Order: check settings, models, ports and packages; lock the data directory; start Redis, then the API, Flower and the
workers; say what runs where; keep it running until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from cli import plan as planning
from cli.embedded_redis import EmbeddedRedis, answers, check, write_private
from cli.lock import DirLock
from cli.plan import Plan
from cli.readiness import Probe, Standing
from cli.supervisor import Say, Supervisor, quietly
from tasks.catalog import load_catalog
from tasks.errors import BadConfig
from tasks.settings import Settings, load_settings, redis_url
from tasks.tenants import load_tenants

LOOK_S = 0.25


@dataclass(frozen=True)
class Options:
    """What the command line says beside the settings: one model to serve instead of models.toml, with its keys."""

    model: str = ""
    name: str = ""
    entry: dict[str, Any] = field(default_factory=dict)
    flower: bool = True


def up(console: Console, options: Options, **overrides: Any) -> None:
    """Run Penstock until someone stops it. Raises `BadConfig` before anything has started."""
    began = time.monotonic()
    say = quietly(lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True))
    settings = load_settings(**overrides)
    if settings.model:
        raise BadConfig("PENSTOCK_MODEL is for a single worker: unset it, `penstock up` serves all of models.toml")
    if not options.model:
        load_catalog(settings.models)  # a typo in it leaves nothing behind
        load_tenants(settings.tenants)
    flower = options.flower and _has_flower(say)
    folder = settings.data_dir.expanduser().resolve()
    with _owned(folder):
        settings = planning.resolve(_effective(settings, folder, options), flower)
        catalog = load_catalog(settings.models)
        planning.check_installed(catalog)
        with _redis(settings, folder) as (url, address, embedded):
            plan = Plan(settings, catalog, flower, url)
            write_private(folder / "redis.url", url + "\n")
            write_private(folder / "api.url", plan.api_url + "\n")
            with Supervisor(folder, say) as supervisor, contextlib.closing(_probe(supervisor, plan)) as probe:
                if embedded:
                    supervisor.start_store(embedded.part)
                if _start(supervisor, plan, probe, console, say):
                    say(_summary(plan, probe, address, time.monotonic() - began))
                    supervisor.run()
                say("Draining: workers hand their jobs back. Ctrl-C again kills.")
    say("Stopped. What was not finished goes on with the next `penstock up`.")


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """The data directory, ours alone; its URLs go when we do."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = DirLock(folder / "penstock.lock")
    except OSError as error:
        raise BadConfig(f"{folder}: {error.strerror}: set PENSTOCK_DATA_DIR", param="PENSTOCK_DATA_DIR") from None
    try:
        yield
    finally:
        for name in ("redis.url", "api.url"):
            (folder / name).unlink(missing_ok=True)
        lock.close()


@contextlib.contextmanager
def _redis(settings: Settings, folder: Path) -> Iterator[tuple[str, str, EmbeddedRedis | None]]:
    """The URL and the address of the given Redis, or of an embedded one that is still to be started."""
    if settings.redis_url or os.environ.get("REDIS_URL"):
        given = redis_url(settings)
        yield given, check(given), None
        return
    with contextlib.closing(EmbeddedRedis(folder, settings.redis_port, settings.appendfsync)) as embedded:
        yield embedded.url, f"{embedded.address}, its files in {folder}", embedded


def _effective(settings: Settings, folder: Path, options: Options) -> Settings:
    """The settings with the models that the command line names."""
    if not options.model:
        return settings
    return settings.model_copy(
        update={"models": planning.write_single(folder, options.model, options.name, options.entry)}
    )


def _has_flower(say: Say) -> bool:
    if importlib.util.find_spec("flower") is None:
        say("Flower is not installed, so it does not run: pip install 'penstock[flower]'")
        return False
    return True


def _probe(supervisor: Supervisor, plan: Plan) -> Probe:
    parts = {
        entry: [part.name for part in plan.workers() if part.env["PENSTOCK_MODEL"] == entry]
        for entry in plan.catalog.entries
    }
    return Probe(plan, lambda model: all(supervisor.deaths.get(name, 0) >= 2 for name in parts[model]))


def _start(supervisor: Supervisor, plan: Plan, probe: Probe, console: Console, say: Say) -> bool:
    """Start the parts and wait until all that can serve does; False if someone asked to stop first."""
    if not supervisor.until(lambda: answers(plan.redis_url), 0.05):
        return False
    check(plan.redis_url)  # a server on PATH may be too old
    supervisor.start(plan.api())
    for part in plan.workers():
        supervisor.start(part)
    if plan.flower:
        supervisor.start(plan.flower_part())
    told: set[str] = set()
    with console.status("Starting") as status:

        def settled() -> bool:
            standing = probe.look()
            _tell(standing, told, say)
            status.update(f"Waiting for {standing.describe()}")
            return standing.settled

        return supervisor.until(settled, LOOK_S)


def _tell(standing: Standing, told: set[str], say: Say) -> None:
    """Each model that did not load, once."""
    for model, reason in standing.failed.items():
        if model not in told:
            say(f"Model {model} does not serve: {reason}. The rest goes on.")
            told.add(model)


def _summary(plan: Plan, probe: Probe, address: str, seconds: float) -> str:
    """What runs where, and an example to paste."""
    standing = probe.look()
    lines = [
        f"Penstock is ready ({seconds:.1f} s)." if standing.ready else f"Penstock runs in part ({seconds:.1f} s).",
        f"  API      {plan.api_url}/v1  (docs: {plan.api_url}/docs)",
        *([f"  Flower   {plan.flower_url}"] if plan.flower else []),
        f"  Redis    {address}",
        f"  Logs     {plan.settings.data_dir / 'logs'}",
    ]
    for entry in plan.catalog.entries.values():
        mine = [card for card in standing.cards if card.model == entry.name and card.state == "ready"]
        lanes = f"{len(mine)} worker{'s' * (len(mine) != 1)}, {sum(card.lanes for card in mine)} lanes"
        state = f"{entry.engine} on {mine[0].device}, {lanes}" if mine else "does not serve"
        lines.append(f"  Model    {entry.name}  ({state})")
    serving = [card.model for card in standing.cards if card.state == "ready"]
    model = next((name for name in plan.catalog.entries if name in serving), "")
    return "\n".join(lines + (_example(plan.api_url, model, probe.chats(model)) if model else []))


def _example(url: str, model: str, chats: bool) -> list[str]:
    if not chats:
        body = f'{{"model": "{model}", "stream": true, "prompt": "Once upon a time", "max_tokens": 50}}'
        return ["", "Try it:", f"  curl -N {url}/v1/completions -H 'Content-Type: application/json' -d '{body}'"]
    body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Count from 3 to 40."}}]}}'
    code = (
        f'from openai import OpenAI; c = OpenAI(base_url="{url}/v1", api_key="none"); '
        f'print(c.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Count from 3 to 40."}}])'
        ".choices[0].message.content)"
    )
    beside = Path(_command())
    return [
        "",
        "Try it:",
        f"  {beside} chat",
        f"  curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
        f"  {beside.with_name('python')} -c '{code}'  # after: {beside.with_name('pip')} install openai",
    ]


def _command() -> str:
    """How to call us again: `make up` leaves .venv/bin out of PATH."""
    path = os.path.relpath(sys.argv[0])
    return "penstock" if shutil.which("penstock") else sys.argv[0] if path.startswith("..") else path
