"""How tickets leave Redis: taken for good when they are popped, and asked for again soon after an outage.

Kombu acknowledges what it takes, in keys of its own, and gives back what was not. A ticket only says "there is work", and
reaping replaces lost ones, so all of that is left out. It would cost two more calls a ticket, and an acknowledgement that
comes when its connection has just broken ends the worker (kombu 5.7: AttributeError in `Channel.basic_ack`).

Kombu pops one ticket a round trip and a turn of its loop, so a burst fills lanes one after the other. Here each pop asks
for more in the same breath: never for more than there are free lanes, and for few, so that a burst spreads over workers.

Kombu waits 2, 4, 6 and up to 30 seconds between its tries to connect, and Celery has no setting for it. All the while
lanes would stay empty, though Redis was back within a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import Any, ClassVar, Protocol

from kombu.connection import Connection
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.redis import Channel, QoS, Transport
from kombu.utils.json import loads

from tasks.generate import NAME

TOGETHER = 8  # tickets of one pop


class NothingUnacknowledged(QoS):
    """Looks for nothing to restore: kombu would hold a lock in Redis for it, for minutes if the connection breaks then."""

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""


class Lanes(Protocol):
    """What serves the tickets."""

    def free(self) -> int:
        """How many it could begin at once."""


class TicketChannel(Channel):
    """Without acknowledgements, and with several tickets a pop. Of one queue: a worker serves one model."""

    QoS = NothingUnacknowledged
    do_restore = False
    lanes: ClassVar[Lanes | None] = None  # this process'; without them, one ticket a pop
    _pops: Sequence[tuple[Any, ...]] = ()  # the commands under way

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> None:
        """As always, but nothing is noted as not yet acknowledged."""
        super().basic_consume(queue, True, *args, **kwargs)  # type: ignore[no-untyped-call]

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Nothing to do."""

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Nothing to do: whoever drops a ticket drops it for good."""

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Wait for one ticket, and take what else is there when it comes."""
        for queue in self._queue_cycle.consume(1):
            more = min(self._room(), TOGETHER) - 1
            self._pops = [("BRPOP", queue, timeout or self.brpop_timeout)]
            self._pops += [("RPOP", queue, more)] if more > 0 else []
            connection = self._in_poll = self.client.connection
            self._brpop_sent_at = monotonic()  # type: ignore[assignment]
            connection.send_packed_command(connection.pack_commands(self._pops))

    def _brpop_read(self, **options: Any) -> bool:
        """Hand on what was popped."""
        connection = self.client.connection
        try:
            first, *more = [self.client.parse_response(connection, pop[0]) for pop in self._pops]
        except Exception:  # a reply that is still to come must not be taken for one to the next pop
            connection.disconnect()
            raise
        finally:
            self._in_poll = None  # type: ignore[assignment]
        queue = self._pops[0][1]
        tickets = [first[1]] if first else []
        tickets += more[0] if more and more[0] else []
        room = self._room()  # lanes may have been taken away since
        if tickets[room:]:
            with self.conn_or_acquire() as client:
                client.rpush(queue, *reversed(tickets[room:]))
        for ticket in tickets[:room]:
            self.connection._deliver(loads(ticket), queue)  # type: ignore[no-untyped-call]
        if not tickets:
            raise Empty
        return True

    def _room(self) -> int:
        return 1 if self.lanes is None else max(1, self.lanes.free())


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
