"""Prometheus metrics. Names follow vLLM's, with `penstock:` for its prefix, so that dashboards carry over.

Counters and histograms are what this API process saw; gauges are read from the pool's view. With several API processes
every one of them reports into one folder (`prometheus_client`'s multiprocess mode, see `api.__main__`).
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from api.pool import Pool
from tasks.events import Delta, End, Entry, EntryId
from tasks.jobs import JobSpec

TTFT: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5)
TTFT_BUCKETS: Final = (*TTFT, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
ITL_BUCKETS: Final = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    80.0,
)
E2E: Final = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
E2E_BUCKETS: Final = (*E2E, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
LABELS: Final = ("model_name",)


class _PoolGauges(Collector):
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        """One sample per model."""
        running = GaugeMetricFamily("penstock:num_requests_running", "sequences on lanes", labels=LABELS)
        waiting = GaugeMetricFamily("penstock:num_requests_waiting", "jobs in line", labels=LABELS)
        lanes = GaugeMetricFamily("penstock:num_lanes", "lanes of ready workers", labels=LABELS)
        workers = GaugeMetricFamily("penstock:num_workers_ready", "ready workers", labels=LABELS)
        kv = GaugeMetricFamily("penstock:kv_cache_usage_perc", "used share of the KV cache, 0 to 1", labels=LABELS)
        rate = GaugeMetricFamily("penstock:tokens_per_second", "answer tokens of all workers", labels=LABELS)
        for name, view in self._pool.models.items():
            running.add_metric([name], sum(card.running for card in view.cards))
            waiting.add_metric([name], view.line.waiting)
            lanes.add_metric([name], sum(card.lanes for card in view.ready))
            workers.add_metric([name], len(view.ready))
            kv.add_metric([name], max((card.kv_used for card in view.ready), default=0.0))
            rate.add_metric([name], sum(card.tokens_per_s for card in view.ready))
        return [running, waiting, lanes, workers, kv, rate]


@dataclass(slots=True)
class Tally:
    """A model's tokens since the last flush. Counting them one by one in the registry would cost as much as sending."""

    tokens: int = 0
    gaps: list[int] = field(default_factory=lambda: [0] * (len(ITL_BUCKETS) + 1))
    gaps_s: float = 0.0


class Metrics:
    """What is counted. One per app, with a registry of its own. Tokens reach it by `flush`."""

    def __init__(self, pool: Pool) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._gauges = CollectorRegistry()
        self._gauges.register(_PoolGauges(pool))
        self.prompt_tokens = Counter("penstock:prompt_tokens", "prompt tokens accepted", LABELS, registry=registry)
        self.generation_tokens = Counter(
            "penstock:generation_tokens", "answer tokens relayed", LABELS, registry=registry
        )
        self.finished = Counter(
            "penstock:request_success", "requests that ended", (*LABELS, "finished_reason"), registry=registry
        )
        self.refused = Counter("penstock:request_refused", "requests not accepted", ("code",), registry=registry)
        self.ttft = _histogram("penstock:time_to_first_token_seconds", TTFT_BUCKETS, registry)
        self.itl = _histogram("penstock:inter_token_latency_seconds", ITL_BUCKETS, registry)
        self.e2e = _histogram("penstock:e2e_request_latency_seconds", E2E_BUCKETS, registry)
        self._tallies: dict[str, Tally] = {}

    def watch(self, spec: JobSpec) -> Stopwatch:
        """Count a request that was accepted."""
        self.prompt_tokens.labels(spec.model).inc(spec.prompt_tokens)
        return Stopwatch(self, spec.model, self._tallies.setdefault(spec.model, Tally()))

    async def flush(self) -> None:
        """Take over what was tallied. Once a second, for with several processes another one may be asked for it."""
        self._flush()

    def _flush(self) -> None:
        for model, tally in self._tallies.items():
            self._take(model, tally)

    def _take(self, model: str, tally: Tally) -> None:
        if not tally.tokens:
            return
        self.generation_tokens.labels(model).inc(tally.tokens)
        itl: Any = self.itl.labels(model)  # there is no public way to observe many values at once
        for bucket, count in zip(itl._buckets, tally.gaps, strict=True):
            if count:
                bucket.inc(count)
        itl._sum.inc(tally.gaps_s)
        tally.tokens, tally.gaps, tally.gaps_s = 0, [0] * len(tally.gaps), 0.0

    def text(self) -> bytes:
        """The exposition format."""
        self._flush()
        counted: Collector = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            counted = CollectorRegistry()
            MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
        return generate_latest(counted) + generate_latest(self._gauges)


def _histogram(name: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(name, name.partition(":")[2].replace("_", " "), LABELS, buckets=buckets, registry=registry)


class Stopwatch:
    """The times of one request: from its arrival to its first token, between tokens, to its end."""

    def __init__(self, metrics: Metrics, model: str, tally: Tally) -> None:
        self._metrics = metrics
        self._model = model
        self._tally = tally
        self._begun = self._last = time.monotonic()
        self._first = True

    def see(self, items: Sequence[tuple[EntryId, Entry]]) -> None:
        """Count entries that are on their way to the client, all of them now."""
        now = time.monotonic()
        for _, entry in items:
            if isinstance(entry, Delta) and entry.tokens:
                self._tally.tokens += len(entry.tokens)
                if self._first:
                    self._metrics.ttft.labels(self._model).observe(now - self._last)
                else:
                    self._tally.gaps[bisect_left(ITL_BUCKETS, now - self._last)] += 1
                    self._tally.gaps_s += now - self._last
                self._first, self._last = False, now
            elif isinstance(entry, End):
                self._end(entry, now)

    def _end(self, end: End, now: float) -> None:
        self._metrics.e2e.labels(self._model).observe(now - self._begun)
        reason = (end.finish or "stop") if end.state == "succeeded" else "error"
        self._metrics.finished.labels(self._model, "abort" if end.state == "cancelled" else reason).inc()
