"""`penstock status` and `penstock workers`: how the line and the workers stand, from the API."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.client import Client

EVERY_S = 1.0
_WAITING = re.compile(r'^penstock:num_requests_waiting\{model_name="(?P<model>[^"]*)"\} (?P<value>\S+)', re.M)


def status(console: Console, client: Client, watch: bool) -> None:
    """Models with their line, lanes and speed, then the workers; with `watch`, again every second."""
    if not watch:
        console.print(_view(client))
        return
    with Live(_view(client), console=console, screen=False, auto_refresh=False) as live:
        while True:
            time.sleep(EVERY_S)
            live.update(_view(client), refresh=True)


def workers(console: Console, client: Client) -> None:
    """The workers alone."""
    cards = client.get("/v1/workers")["data"]
    console.print(_workers(cards) if cards else "No worker was heard of lately.")


def _view(client: Client) -> Group:
    cards = client.get("/v1/workers")["data"]
    waiting = waiting_jobs(client.metrics())
    table = Table(box=None, pad_edge=False)
    for name in ("MODEL", "WAITING", "RUNNING", "LANES", "WORKERS", "TOKENS/S"):
        table.add_column(name, justify="left" if name == "MODEL" else "right")
    for model in client.get("/v1/models")["data"]:
        mine = [card for card in cards if card["model"] == model["id"] and card["state"] == "ready"]
        running, lanes, speed = (sum(card[key] for card in mine) for key in ("running", "lanes", "tokens_per_s"))
        line = waiting.get(model["id"])
        table.add_row(
            model["id"], "?" if line is None else f"{line:.0f}", *_text(running, lanes, len(mine), round(speed))
        )
    return Group(table, "", _workers(cards))


def _workers(cards: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("WORKER", "MODEL", "STATE", "DEVICE", "RUNNING", "LANES", "TOKENS/S", "KV", "HEARD"):
        table.add_column(name, justify="right" if name in ("RUNNING", "LANES", "TOKENS/S", "KV") else "left")
    for card in cards:
        device = card["device"] + (f" {','.join(map(str, card['gpus']))}" if card["gpus"] else "")
        told = card.get("error") or card.get("progress")
        state = card["state"] + (f": {told}" if told else "")
        heard = f"{max(0.0, time.time() - card['heartbeat']):.0f} s ago"
        numbers = _text(card["running"], card["lanes"], round(card["tokens_per_s"]), f"{card['kv_used']:.0%}")
        table.add_row(*map(Text, (card["name"], card["model"], state, device, *numbers, heard)))  # no markup
    return table


def waiting_jobs(metrics: str) -> dict[str, float]:
    """Jobs in line by model, from the text of /metrics."""
    return {match["model"]: float(match["value"]) for match in _WAITING.finditer(metrics)}


def _text(*values: object) -> Iterator[str]:
    return map(str, values)
