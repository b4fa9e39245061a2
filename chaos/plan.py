"""What the house is to have, and the members that follow from it. Nothing is started here."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chaos.members import ROOT, Member, api_part, environ, free_port, redis_part, wing_part, worker_part
from chaos.pair import Pair, sentinel_command
from cli.processes import Part, Watcher

FAKE, DEMO = "fake", "penstock-demo"
MODELS = """\
[[model]]
name = "fake"
engine = "fake"
max_num_seqs = {lanes}
"""
DEMO_MODEL = """
[[model]]
name = "penstock-demo"
path = "{demo}"
dtype = "float32"
max_num_seqs = {lanes}
max_model_len = 2048
replicas = 0
"""
#: The clock of the last fake worker is an hour ahead.
SKEW_S = "3600"


@dataclass(frozen=True)
class Plan:
    """What the house has. `breaks`: guards to take out of workers and APIs; `settings`: more PENSTOCK_ variables.

    `redis_pause_s` is how long the fault of that name lasts; `replica`: Redis has one, and a Sentinel.
    """

    folder: Path
    lease_s: float = 2.0
    step_timeout_s: float = 4.0
    appendfsync: str = "always"
    apis: int = 2
    fakes: int = 2
    demos: int = 0
    wing: bool = True
    breaks: tuple[str, ...] = ()
    lanes: int = 16
    redis_pause_s: float = 20.0
    replica: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Members:
    """All processes of a house. `pair`: of its Redis, if it has a replica."""

    server: Member
    apis: list[Member]
    workers: list[Member]
    wing: Member | None
    pair: Pair | None = None

    @property
    def redis(self) -> Member:
        """The server that is written to."""
        return self.pair.primary if self.pair else self.server

    def __iter__(self) -> Iterator[Member]:
        yield self.redis
        if self.pair:
            yield from self.pair.others
        yield from self.apis
        yield from self.workers
        if self.wing:
            yield self.wing


class Furnisher:
    """Makes the members of one plan."""

    def __init__(self, plan: Plan, folder: Path, redis_port: int, watcher: Watcher, rng: random.Random) -> None:
        self._plan = plan
        self._folder = folder
        self._redis_port = redis_port
        self._watcher = watcher
        self._rng = rng
        self._orders = folder / "orders"

    def make(self) -> Members:
        """The members, none of them started."""
        plan = self._plan
        demo = DEMO_MODEL if plan.demos else ""
        text = (MODELS + demo).format(lanes=plan.lanes, demo=ROOT / "models" / "demo")
        (self._folder / "models.toml").write_text(text)
        pair = self._pair() if plan.replica else None
        fakes = [
            self._worker(f"fake-{number}", FAKE, ahead=0 < number == plan.fakes - 1) for number in range(plan.fakes)
        ]
        return Members(
            server=pair.primary if pair else self._server("redis", self._redis_port),
            apis=[self._api(f"api-{number}") for number in range(plan.apis)],
            workers=fakes + [self._worker(f"demo-{number}", DEMO) for number in range(plan.demos)],
            wing=self._wing() if plan.wing else None,
            pair=pair,
        )

    def _server(self, name: str, port: int) -> Member:
        part = redis_part(name, self._folder / name, port, self._plan.appendfsync)
        return Member("redis", part, self._folder, self._watcher)

    def _pair(self) -> Pair:
        first, second, third = (free_port(self._rng) for _ in range(3))
        servers = {first: self._server("redis", first), second: self._server("redis-2", second)}
        part = Part("sentinel", "Sentinel", sentinel_command(self._folder / "sentinel", third, first), environ({}))
        return Pair(self._redis_port, servers, Member("redis", part, self._folder, self._watcher), third)

    def _api(self, name: str) -> Member:
        url, port = self._address()
        part = api_part(name, self._orders, self._settings({"PENSTOCK_PORT": port}))
        return Member("api", part, self._folder, self._watcher, url=url)

    def _worker(self, name: str, model: str, ahead: bool = False) -> Member:
        own = {"PENSTOCK_MODEL": model} | ({"CHAOS_SKEW_S": SKEW_S} if ahead else {})
        part = worker_part(name, self._orders, self._settings(own))
        return Member("worker", part, self._folder, self._watcher, model=model)

    def _wing(self) -> Member:
        url, port = self._address()
        own = {"PENSTOCK_DATA_DIR": str(self._folder / "wing"), "PENSTOCK_PORT": port}
        part = wing_part("wing", self._orders, self._settings(own))
        return Member("supervisor", part, self._folder, self._watcher, url=url)

    def _address(self) -> tuple[str, str]:
        port = free_port(self._rng)
        return f"http://127.0.0.1:{port}", str(port)

    def _settings(self, own: Mapping[str, str]) -> dict[str, str]:
        shared = {
            "PENSTOCK_REDIS_URL": f"redis://127.0.0.1:{self._redis_port}/0",
            "PENSTOCK_MODELS": str(self._folder / "models.toml"),
            "PENSTOCK_DATA_DIR": str(self._folder / "data"),
            "PENSTOCK_LEASE_S": f"{self._plan.lease_s:g}",
            "PENSTOCK_STEP_TIMEOUT_S": f"{self._plan.step_timeout_s:g}",
            "CHAOS_BREAK": ",".join(self._plan.breaks),
        }
        return shared | dict(self._plan.settings) | dict(own)
