"""A worker process: `celery -A workers.main worker` is the whole command.

The only module with process state. PENSTOCK_MODEL names the entry of models.toml; pool, lanes, queue and name follow
from it. Importing this reads the settings and prepares the process, before anything can import torch.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
from typing import Any

from celery import bootsteps, signals
from celery.worker import state
from kombu.entity import Queue

from tasks.app import create_app
from tasks.catalog import Catalog, ModelEntry, load_catalog
from tasks.errors import BadConfig
from tasks.generate import NAME
from tasks.keys import queue_of
from tasks.settings import Settings, load_settings
from workers.lanes import LanePool
from workers.runtime import WorkerRuntime, leave
from workers.ticket_events import TicketEvents


def select_model(settings: Settings) -> tuple[Catalog, ModelEntry]:
    """The entry that this worker serves. Raises `BadConfig` that names the choices."""
    catalog = load_catalog(settings.models)
    entry = catalog.get(settings.model)
    if entry is None:
        raise BadConfig(f"PENSTOCK_MODEL is {settings.model!r}; {settings.models} has: {', '.join(catalog.entries)}")
    return catalog, entry


def choose_gpus(settings: Settings, entry: ModelEntry) -> list[int]:
    """The GPUs of this process. Hides all others from it."""
    try:
        gpus = [int(part) for part in settings.gpus.split(",")] if settings.gpus else entry.gpus
    except ValueError:
        raise BadConfig(f"PENSTOCK_GPUS is {settings.gpus!r}: write numbers, as in 0,1") from None
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in gpus)
    return gpus


def choose_threads(settings: Settings, catalog: Catalog) -> None:
    """Divide the cores among the workers of this machine: more threads than cores slow every step down."""
    if settings.threads == 0 and "OMP_NUM_THREADS" in os.environ:
        return
    workers = max(1, sum(entry.replicas for entry in catalog.entries.values()))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = settings.threads or max(1, cores // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def worker_name(entry: ModelEntry) -> str:
    """Never used before: a name that drained once stays marked for an hour, and containers repeat their pids."""
    return f"{entry.name}-{os.getpid()}-{secrets.token_hex(2)}@{platform.node() or 'localhost'}"


try:
    settings = load_settings()
    catalog, entry = select_model(settings)
    gpus = choose_gpus(settings, entry)
    choose_threads(settings, catalog)
    app: Any = create_app(settings)  # Any: Celery has no types
    runtime = WorkerRuntime(settings, entry, worker_name(entry), gpus)
except BadConfig as error:
    raise SystemExit(f"penstock worker: {error.message}") from None

app.conf.update(
    worker_pool=f"{LanePool.__module__}:{LanePool.__name__}",
    worker_concurrency=entry.max_num_seqs,
    # The scripts make the list by pushing to it, so it needs no declaration.
    task_queues=[Queue(queue_of(entry.name), no_declare=True)],  # type: ignore[no-untyped-call]
)


class RuntimeStep(bootsteps.StartStopStep):
    """Starts the runtime after the pool and before the consumer, and stops it in the reverse order: tickets come only
    while a model is loaded."""

    requires = ("celery.worker.components:Pool",)  # type: ignore[assignment]

    def start(self, worker: Any) -> None:
        """Load the model. A signal meanwhile ends the process at once: it holds nothing yet."""

        def check() -> None:
            if state.should_stop is not None or state.should_terminate is not None:
                leave(0)

        runtime.start(check)

    def stop(self, worker: Any) -> None:
        """Give the jobs back. A worker that did so when a signal asked for it has succeeded."""
        runtime.stop()
        if state.should_stop is not None:
            worker.exitcode = 0

    def terminate(self, worker: Any) -> None:
        """A cold shutdown drains too: it takes no longer."""
        self.stop(worker)


def generate() -> None:
    """Serve one ticket."""
    runtime.lanes.serve()


def name_worker(instance: Any, **_: Any) -> None:
    """Celery, Flower and the store call this worker by one name."""
    instance.hostname = runtime.name


def leave_neighbours_alone(sender: Any, **_: Any) -> None:
    """Mingle costs a second at every start and gossip traffic for ever; the store knows the workers. Celery has no
    settings for these, only flags of its command, which this saves typing."""
    sender.options.update(without_mingle=True, without_gossip=True)


def drain(**_: Any) -> None:
    """At the signal, not when the hub notices it."""
    runtime.begin_drain()


def end_process(sender: Any, **_: Any) -> None:
    """Everything is handed over and closed. Tearing down the interpreter with a model in it takes seconds more, and can
    crash under threads that wait."""
    leave(sender.exitcode or 0)


def set_up_logging(**_: Any) -> None:
    """To stderr, at PENSTOCK_LOG_LEVEL. Jobs are named by id, never by content; tickets are not worth two lines."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("torchao", "bitsandbytes"):  # they warn of kernels that this machine has no use for
        logging.getLogger(name).setLevel(logging.ERROR)


app.events.dispatcher_cls = TicketEvents
app.task(generate, name=NAME)
app.steps["worker"].add(RuntimeStep)
celery_signals: Any = signals
celery_signals.celeryd_init.connect(name_worker, weak=False)
celery_signals.worker_init.connect(leave_neighbours_alone, weak=False)
celery_signals.worker_shutting_down.connect(drain, weak=False)
celery_signals.worker_shutdown.connect(end_process, weak=False)
celery_signals.setup_logging.connect(set_up_logging, weak=False)
