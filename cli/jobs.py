"""`penstock submit`, `penstock jobs` and `penstock cancel`: work that nobody waits for."""

from __future__ import annotations

import datetime
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.chat import plain
from cli.client import ApiError, Client, is_terminal

POLL_S = 0.5


def submit(console: Console, client: Client, body: dict[str, Any], wait: bool) -> None:
    """Put a job in line and print its id; with `wait`, its answer instead."""
    job = client.post("/v1/jobs", body)
    if not wait:
        console.out(job["id"], highlight=False)
        return
    with console.status(f"{job['id']}: {job['state']}") as status:
        while not is_terminal(job):
            time.sleep(POLL_S)
            try:
                job = client.get(f"/v1/jobs/{job['id']}")
            except ApiError as away:
                raise ApiError(f"{away}\n{job['id']} was accepted, and goes on without this command") from None
            status.update(f"{job['id']}: {describe(job)}")
    if job["state"] != "succeeded":
        error = job.get("error") or {}
        raise ApiError(f"{job['id']} {job['state']}: {error.get('message', 'no reason given')}")
    console.out(plain(job["output_text"]), highlight=False)


def describe(job: dict[str, Any]) -> str:
    """Where a job stands, with its place in line."""
    queue = job.get("queue") or {}
    if job["state"] != "queued" or queue.get("position") is None:
        return str(job["state"])
    eta = queue.get("eta_s")
    return f"queued, position {queue['position']}" + (f", starts in {eta:.0f} s" if eta is not None else "")


def show(console: Console, client: Client, limit: int) -> None:
    """The latest submitted jobs, newest first."""
    jobs = client.get("/v1/jobs", limit=limit)["data"]
    if not jobs:
        console.print("No job was submitted, or none is kept any more.")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("ID", "MODEL", "STATE", "CREATED", "TOKENS", "ATTEMPTS"):
        table.add_column(name, no_wrap=True)
    for job in jobs:
        created = when(job["created_at"])
        tokens = str((job.get("usage") or {}).get("completion_tokens", ""))
        table.add_row(job["id"], job["model"], describe(job), created, tokens, str(job.get("attempts", "")))
    console.print(table)


def when(seconds: float) -> str:
    """A time of today by the clock, an earlier one by its date."""
    moment = datetime.datetime.fromtimestamp(seconds)
    return moment.strftime("%H:%M:%S" if moment.date() == datetime.date.today() else "%d %b %Y")


def cancel(console: Console, client: Client, job_id: str) -> None:
    """Cancel a job, and say what became of it."""
    job = client.post(f"/v1/jobs/{job_id}/cancel")
    state = job.get("state", "cancelled")
    said = "its worker stops it at the next step" if state == "running" else str(state)
    console.out(f"{job_id}: {said}", highlight=False)
