"""The Celery app and its options, each with its reason.

Workers build it with their queue, Flower takes it as it is (`celery -A tasks.app flower`). Nothing publishes through
it: the store's scripts push the tickets.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from tasks import transport
from tasks.settings import Settings, load_settings, redis_url

transport.install()


def create_app(settings: Settings) -> Celery:
    """The app for the Redis of `settings`, with no queue of its own."""
    app = Celery("penstock", set_as_current=False)  # type: ignore[no-untyped-call]
    app.amqp.Connection = transport.TicketConnection
    app.conf.update(
        broker_url=redis_url(settings),
        broker_transport_options={
            "socket_timeout": 30.0,  # a silent broker must not hold the hub for ever
            "socket_connect_timeout": 5.0,
            "socket_keepalive": True,
            "health_check_interval": 10,  # finds half-open connections
            "client_name": "penstock-celery",
        },
        broker_connection_retry_on_startup=True,  # Redis may start after the worker
        broker_connection_max_retries=None,  # an outage of any length ends by itself
        broker_channel_error_retry=True,  # so does a Redis that refuses to hand out tickets, as a demoted primary does
        task_acks_late=False,  # tickets are not acknowledged at all, see `tasks.transport`
        task_ignore_result=True,
        result_backend=None,  # results are the jobs' logs
        task_serializer="json",
        accept_content=["json"],  # nobody who can write to Redis may run code here
        task_create_missing_queues=False,  # a typo in a queue's name must be an error
        worker_disable_prefetch=True,  # a ticket held by a busy worker would make a job wait beside a free lane
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,  # there is no prefetch to reduce
        worker_cancel_long_running_tasks_on_connection_loss=True,  # means late acknowledgement only; silences a warning
        worker_send_task_events=True,  # Flower shows tickets without -E
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        enable_utc=True,
    )
    return app


def __getattr__(name: str) -> Any:
    # Celery's `-A tasks.app` wants an attribute, but importing a module must not need a Redis.
    if name != "app":
        raise AttributeError(name)
    app = globals()["app"] = create_app(load_settings())
    return app
