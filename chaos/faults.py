"""Every kind of fault, by the name that it has in the report.

Poison jobs and slow readers are kinds of clients, not faults. Clocks that differ are there from the start: one worker of
the house lives an hour ahead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from chaos import line_faults, store_faults, worker_faults
from chaos.scene import Hit, Missed, Scene

__all__ = ["ALWAYS", "FAULTS", "Fault", "Hit", "Missed", "Scene", "Struck"]


@dataclass(frozen=True)
class Fault:
    """One kind. `on_worker`: it strikes a worker, of which most should be busy. `takes_leases`: jobs may lose their owner
    by it, which without such a fault would be an error. `lossy`: only where Redis may lose its last writes."""

    strike: Callable[[Scene], Awaitable[Hit]]
    on_worker: bool = False
    takes_leases: bool = False
    lossy: bool = False


@dataclass
class Struck:
    """A fault that happened. Times are `time.monotonic`; `until`: when all was healed but what restarts by itself.

    `jobs`: those that the target was running, `busy`: there were any. `mixed`: another fault was at work meanwhile.
    `trouble`: a promise that the fault itself saw broken; never set for a mixed one, where the other may be the cause.
    """

    kind: str
    at: float
    until: float
    target: str
    busy: bool
    jobs: tuple[str, ...]
    mixed: bool = False
    trouble: str = ""


def _worker(strike: Callable[[Scene], Awaitable[Hit]], takes_leases: bool = False) -> Fault:
    return Fault(strike, on_worker=True, takes_leases=takes_leases)


FAULTS: dict[str, Fault] = {
    "worker_kill": _worker(worker_faults.worker_kill, takes_leases=True),
    "worker_zombie": _worker(worker_faults.worker_zombie, takes_leases=True),
    "worker_kill_before_claim": _worker(worker_faults.worker_kill_before_claim, takes_leases=True),
    "step_error": _worker(worker_faults.step_error),
    "step_oom": _worker(worker_faults.step_oom),
    "step_hang": _worker(worker_faults.step_hang, takes_leases=True),
    "step_slow": _worker(worker_faults.step_slow),
    "worker_drain": _worker(worker_faults.worker_drain),
    "workers_gone": _worker(worker_faults.workers_gone, takes_leases=True),
    "redis_kill": Fault(store_faults.redis_kill, takes_leases=True),
    "redis_power": Fault(store_faults.redis_power, takes_leases=True, lossy=True),
    "redis_failover": Fault(store_faults.redis_failover, takes_leases=True, lossy=True),
    "kill_broker": Fault(store_faults.kill_broker),
    "kill_writer": Fault(store_faults.kill_writer, takes_leases=True),  # a claim whose answer was lost lapses
    "kill_commands": Fault(store_faults.kill_commands),
    "kill_subscription": Fault(store_faults.kill_subscription),
    "redis_pause": Fault(store_faults.redis_pause, takes_leases=True),  # the same
    "redis_full": Fault(store_faults.redis_full, takes_leases=True),  # renewals are refused, too
    "api_kill": Fault(line_faults.api_kill),
    "api_stop": Fault(line_faults.api_stop),
    "ticket_double": Fault(line_faults.ticket_double),
    "ticket_lost": Fault(line_faults.ticket_lost),
    "ticket_late": Fault(line_faults.ticket_late),
    "ticket_foreign": Fault(line_faults.ticket_foreign),
    "preempt": Fault(line_faults.preempt),
    "supervisor_kill": Fault(line_faults.supervisor_kill, takes_leases=True),
}
#: The kinds that a Redis with `appendfsync always` can be struck with.
ALWAYS: tuple[str, ...] = tuple(kind for kind, fault in FAULTS.items() if not fault.lossy)
