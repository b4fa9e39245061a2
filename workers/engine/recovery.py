"""What to do after a failing step: try again, then find the sequence that is to blame, then give up.

A first failure runs the same batch again. A second one without a token in between makes every sequence of
that batch a suspect: suspects run alone, one after the other, until each has a new token, and one that fails
twice alone is ended with an error. So one bad sequence costs its neighbours a delay, never their answers. Errors
that the device cannot survive, and too many failures in a row, end the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence

from workers.engine.base import EngineDead

TRIES_ALONE = 2
MAX_RECOVERIES = 64


class Recovery:
    """The memory of failures of one engine; it holds no sequences, only their ids."""

    def __init__(self) -> None:
        self._suspects: deque[str] = deque()
        self._failures = 0  # since the whole batch last made a token
        self._failures_alone = 0  # of the suspect whose turn it is
        self._retried = False
        self._error: Exception | None = None
        self._batch: tuple[str, ...] = ()

    @property
    def alone(self) -> str | None:
        """The sequence that has to run alone now, if any."""
        return self._suspects[0] if self._suspects else None

    def step_failed(self, error: Exception, batch: Sequence[str]) -> None:
        """Remember a failing step and the sequences that were in it."""
        self._error, self._batch = error, tuple(batch)

    def step_done(self, advanced: Collection[str]) -> None:
        """Remember a step that worked, and which sequences got a token in it."""
        if self._suspects:
            self._keep(rid for rid in self._suspects if rid not in advanced)
        elif advanced:
            self._failures, self._retried = 0, False

    def forget(self, rid: str) -> None:
        """A sequence ended."""
        self._keep(other for other in self._suspects if other != rid)

    def next(self, live: Collection[str]) -> tuple[str, str, str] | None:
        """What to do after `step_failed`: the id, message and code of a sequence to end, or None."""
        error, self._error = self._error, None
        if error is None:
            return None
        self._failures += 1
        if is_fatal(error) or self._failures > MAX_RECOVERIES:
            raise EngineDead(f"the engine cannot go on after {type(error).__name__}: {error}") from error
        culprit = self.alone
        if culprit is not None:
            self._failures_alone += 1
            if self._failures_alone < TRIES_ALONE:
                return None
            self.forget(culprit)
            self._retried = False
            code = "out_of_memory" if is_out_of_memory(error) else "engine_error"
            return culprit, f"{type(error).__name__}: {error}", code
        if self._retried:
            self._keep(rid for rid in self._batch if rid in live)
        self._retried = True
        return None

    def _keep(self, suspects: Iterable[str]) -> None:
        before = self.alone
        self._suspects = deque(suspects)
        if self.alone != before:
            self._failures_alone = 0


def is_out_of_memory(error: BaseException) -> bool:
    """Told by name, so that engines without torch share this file."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = "can't allocate memory", "Failed to allocate memory"  # torch and ONNX Runtime on a CPU
    return any(text in str(error) for text in said)


def is_fatal(error: BaseException) -> bool:
    """True when the device context is lost: after a CUDA error every later call fails too."""
    if is_out_of_memory(error):
        return False
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
