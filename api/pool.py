"""What this API process knows of the pool: who lives, how long the lines are, how to render for each model.

Refreshed every second from Redis, so that a request costs no look-up. A refusal must not rest on stale knowledge:
whoever is about to refuse refreshes first.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field

from api.prompts import Prompts
from tasks.catalog import Catalog
from tasks.jobs import ASSUMED, JobSpec
from tasks.profile import WorkerCard
from tasks.store import JobStore, Line


@dataclass(slots=True)
class ModelView:
    """One model as the pool serves it now."""

    prompts: Prompts | None = None
    cards: list[WorkerCard] = field(default_factory=list)
    line: Line = field(default_factory=lambda: Line(0, 0, None))

    @property
    def ready(self) -> list[WorkerCard]:
        """The workers that take jobs."""
        return [card for card in self.cards if card.state == "ready"]

    @property
    def is_ready(self) -> bool:
        """True if a chat request would be accepted."""
        return bool(self.prompts and self.ready)

    def eta_s(self, position: int | None, answer: int = ASSUMED) -> float | None:
        """Seconds until the job at this place in line begins, as far as anybody can tell; `answer` tokens may be its own.

        As many jobs have to end as stand up to it, each with as many tokens as those of its band in line are expected to
        have. Who is first has a lane at once if one is free; where more than one waits, none is, whatever cards still say.
        """
        lanes = sum(card.lanes for card in self.ready)
        if position is None or not lanes or self.line.token_ms is None:
            return None
        free = any(card.running < card.lanes for card in self.ready)
        ends, tokens = 0 if free and position == 1 else position, 0.0
        for jobs, answers in zip(self.line.standing, self.line.answers, strict=True):
            part = min(ends, jobs)
            ends -= part
            tokens += part * answers / jobs if jobs else 0
        return round((tokens + ends * min(answer, ASSUMED)) / lanes * self.line.token_ms / 1000, 1)

    def retry_after_s(self) -> int:
        """When a refused client should come back: when the whole line is through, within what clients accept."""
        return min(120, max(1, math.ceil(self.eta_s(sum(self.line.standing) + 1) or 1)))


class Pool:
    """All models of the catalog. `refresh` raises `StoreDown`; then the last view stays."""

    def __init__(self, catalog: Catalog, store: JobStore) -> None:
        self.models = {name: ModelView() for name in catalog.entries}
        self.workers: list[WorkerCard] = []
        self._store = store
        self._lock = asyncio.Lock()
        self._refreshed = 0.0

    def eta_s(self, spec: JobSpec, position: int | None) -> float | None:
        """Seconds until this job begins, from this place in line; None where nobody can tell."""
        view = self.models.get(spec.model)
        return view.eta_s(position, spec.sampling.max_tokens) if view else None

    async def refresh(self, newer_than_s: float = 0.0) -> None:
        """Look again, unless somebody looked within the last `newer_than_s` seconds."""
        async with self._lock:
            if time.monotonic() - self._refreshed < newer_than_s:
                return
            self.workers = await self._store.workers()
            for name, view in self.models.items():
                view.cards = [card for card in self.workers if card.model == name]
                view.line = await self._store.line(name)
                await self._refresh_prompts(name, view)
            self._refreshed = time.monotonic()

    async def _refresh_prompts(self, name: str, view: ModelView) -> None:
        profile = await self._store.profile(name, view.prompts.profile.digest if view.prompts else "")
        if profile is None:
            view.prompts = None
        elif profile != "same":
            view.prompts = await asyncio.to_thread(Prompts, profile)
