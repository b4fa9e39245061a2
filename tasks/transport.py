"""How tickets leave Redis: taken for good when they are popped, and asked for again soon after an outage.

Kombu acknowledges what it takes, in keys of its own, and gives back what was not. A ticket only says "there is work", and
reaping replaces lost ones, so all of that is left out. It would cost two more calls a ticket, and an acknowledgement that
comes when its connection has just broken ends the worker (kombu 5.7: AttributeError in `Channel.basic_ack`).

Kombu waits 2, 4, 6 and up to 30 seconds between its tries to connect, and Celery has no setting for it. All the while
lanes would stay empty, though Redis was back within a second.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from kombu.connection import Connection
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.redis import Channel, QoS, Transport

from tasks.generate import NAME


class NothingUnacknowledged(QoS):
    """Looks for nothing to restore: kombu would hold a lock in Redis for it, for minutes if the connection breaks then."""

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""


class TicketChannel(Channel):
    """Without acknowledgements."""

    QoS = NothingUnacknowledged
    do_restore = False

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> None:
        """As always, but nothing is noted as not yet acknowledged."""
        super().basic_consume(queue, True, *args, **kwargs)  # type: ignore[no-untyped-call]

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Nothing to do."""

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Nothing to do: whoever drops a ticket drops it for good."""


class TicketTransport(Transport):
    """Redis, with such channels."""

    Channel = TicketChannel

    def _reject_inbound_message(self, raw_message: dict[str, Any]) -> None:
        """Something that was popped when nobody here takes it any more: a ticket goes back, for another worker."""
        if raw_message["headers"].get("task") != NAME:
            return
        queue = raw_message["properties"]["delivery_info"]["routing_key"]
        with suppress(*self.connection_errors):
            next(channel for channel in self.channels if channel)._put(queue, raw_message)


class TicketConnection(Connection):
    """Tries to connect once a second at least."""

    def _ensure_connection(
        self, errback: Any = None, max_retries: int | None = None,
        interval_start: float = 2, interval_step: float = 2, interval_max: float = 30, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        often = min(interval_start, 0.2), min(interval_step, 0.2), min(interval_max, 1.0)
        return super()._ensure_connection(errback, max_retries, *often, *args, **kwargs)  # type: ignore[no-untyped-call]


def install() -> None:
    """Have every broker connection of this process use it, whatever its URL."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{TicketTransport.__name__}"
