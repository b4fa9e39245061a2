"""How tickets leave Redis: taken for good when they are popped.

Kombu acknowledges what it takes, in keys of its own, and gives back what was not. A ticket only says "there is work", and
reaping replaces lost ones, so all of that is left out. It would cost two more calls a ticket, and an acknowledgement that
comes when its connection has just broken ends the worker (kombu 5.7: AttributeError in `Channel.basic_ack`).
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.redis import Channel, Transport


class TicketChannel(Channel):
    """Without acknowledgements."""

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


def install() -> None:
    """Have every broker connection of this process use it, whatever its URL."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{TicketTransport.__name__}"
