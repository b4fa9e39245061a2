"""A ticket is a real Celery message: kombu reads it, and a stock Celery worker runs it."""

# mypy: disable-error-code="no-untyped-call, attr-defined, untyped-decorator"

from __future__ import annotations

import json
from typing import Any

from celery import Celery
from celery.contrib.testing.worker import start_worker
from kombu import Connection, Queue

from tasks.generate import NAME, ticket_template
from tasks.keys import queue_of
from tests.integration.protocol_rig import MODEL, Rig


def test_kombu_reads_a_ticket(rig: Rig, redis_url: str) -> None:
    job = rig.new()
    with Connection(redis_url) as connection, connection.channel() as channel:
        message = Queue(queue_of(MODEL), no_declare=True)(channel).get()
        assert message is not None
        assert message.payload == [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
        headers = message.headers
        assert (headers["task"], headers["ignore_result"], headers["retries"]) == (NAME, True, 0)
        assert headers["id"] == headers["root_id"] == message.properties["correlation_id"]
        assert headers["argsrepr"] == f"('{MODEL}',)"
        assert message.delivery_info["routing_key"] == queue_of(MODEL)
        seen = json.dumps([headers, message.payload, message.properties])
        assert job not in seen  # Flower sees neither job nor prompt
        message.ack()
    assert rig.tickets() == 0


def test_the_template_has_no_trace_of_this_machine_and_no_lua_string_end() -> None:
    template = ticket_template()
    assert "]==]" not in template
    assert json.loads(template)["headers"]["origin"] == "penstock"
    assert template.count("@TASK@") == 4


def test_a_stock_celery_worker_runs_a_ticket(rig: Rig, redis_url: str) -> None:
    app = Celery("stock", broker=redis_url, set_as_current=False)
    app.conf.update(worker_hijack_root_logger=False, task_create_missing_queues=False, broker_connection_timeout=5)
    app.conf.task_queues = [Queue(queue_of(MODEL))]
    ran: list[tuple[str, tuple[Any, ...]]] = []

    @app.task(name=NAME, bind=True)
    def generate(task: Any, *args: Any) -> None:
        ran.append((task.request.id, args))

    for _ in range(3):
        rig.new()
    ids = [json.loads(text)["headers"]["id"] for text in rig.redis.lrange(queue_of(MODEL), 0, -1)]
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=10):
        rig.until(lambda: len(ran) == 3)
    assert ran == [(name, ()) for name in reversed(ids)]  # the queue is first in, first out
    assert rig.tickets() == 0
