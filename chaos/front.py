"""One address in front of whichever Redis is the primary, as a virtual IP, a proxy or a Kubernetes service is.

Sentinel chooses; the address follows when it is told to.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress


class Front:
    """Forwards connections to a port that can be changed; `hold` lets nothing through, and keeps the connections."""

    def __init__(self, target: int, port: int = 0) -> None:
        self._target = target
        self._flowing = threading.Event()
        self._flowing.set()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """As the URL of a Redis."""
        return f"redis://127.0.0.1:{self.port}/0"

    def point(self, target: int) -> None:
        """From now on to this port; whoever is connected is cut off."""
        self._target = target
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Cut everybody off with a reset, as a machine does that has forgotten its connections."""
        gone, self._open = self._open, []
        for one in gone:
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RD)  # says nothing to the other end, but wakes the thread that reads

    def hold(self) -> None:
        """Nothing goes through any more."""
        self._flowing.clear()

    def let_go(self) -> None:
        """The end of `hold`; what was held goes through now."""
        self._flowing.set()

    def close(self) -> None:
        """End it and every connection."""
        self._flowing.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self.point(0)
        for one in (self._listener, *self._open):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR) if one in self._open else one.close()
