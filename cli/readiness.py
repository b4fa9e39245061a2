"""How far the start has come: what /readyz and the workers' cards say. Reads only, and never raises while parts are down."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from redis.exceptions import RedisError

from cli.plan import Plan
from tasks.connections import connect
from tasks.keys import key, single
from tasks.profile import ModelProfile, WorkerCard


@dataclass(frozen=True)
class Standing:
    """What works at this moment. `failed` maps models that did not load to the reason; `whole` is false when some model
    will not serve: it failed, or has no worker here."""

    api: bool = False
    ready: bool = False
    whole: bool = True
    loading: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    cards: list[WorkerCard] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        """Nothing more is on its way: the API takes requests for every model, but for those that will not serve."""
        return self.api and (self.ready or not (self.whole or self.loading))

    def describe(self) -> str:
        """What the start waits for."""
        parts = [] if self.api and (self.loading or not self.whole) else ["the API"]
        return ", ".join(parts + [f"{name} ({self._progress(name)})" for name in self.loading])

    def _progress(self, model: str) -> str:
        """What the first of its workers said last."""
        return next((card.progress for card in self.cards if card.model == model and card.progress), "loading")


class Probe:
    """Asks the API and Redis how things stand."""

    def __init__(self, plan: Plan, died: Callable[[str], bool]) -> None:
        self._plan = plan
        self._died = died
        self._began = time.time()  # what failed in an earlier run says nothing about this one
        self._http = httpx.Client(base_url=plan.api_url, timeout=1.0, trust_env=False)
        self._redis = connect(plan.redis_url, "up")

    def look(self) -> Standing:
        """How things stand now. A model counts as failed once all its workers have failed or died."""
        cards = self._cards()
        loading, failed = [], {}
        for entry in self._plan.catalog.entries.values():
            mine = [card for card in cards if card.model == entry.name]
            if entry.replicas == 0 or any(card.state == "ready" for card in mine):
                continue
            ours = [card for card in mine if card.started >= self._began]
            errors = [card.error or "it did not load" for card in ours if card.state == "failed"]
            if len(errors) >= entry.replicas and len(errors) == len(ours):
                failed[entry.name] = errors[0]
            elif self._died(entry.name):
                failed[entry.name] = "its worker dies at the start"
            else:
                loading.append(entry.name)
        whole = not failed and all(entry.replicas for entry in self._plan.catalog.entries.values())
        return Standing(self._status("/healthz") == 200, self._status("/readyz") == 200, whole, loading, failed, cards)

    def chats(self, model: str) -> bool:
        """Whether a model that is ready has a chat template."""
        with contextlib.suppress(RedisError, OSError):
            text = self._redis.hget(key("profile", model), "json")
            return not isinstance(text, str) or ModelProfile.from_json(text).chat_template is not None
        return True

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._redis.close()

    def _status(self, path: str) -> int:
        try:
            return self._http.get(path).status_code
        except httpx.HTTPError:
            return 0

    def _cards(self) -> list[WorkerCard]:
        try:
            names = self._redis.zrange(single("workers"), 0, -1)
            cards = self._redis.mget([key("worker", str(name)) for name in names]) if names else []
        except (RedisError, OSError):
            return []
        return [WorkerCard.from_json(card) for card in cards if isinstance(card, str)]
