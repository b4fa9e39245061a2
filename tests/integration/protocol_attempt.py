"""A worker's side of one attempt, as the protocol asks it of a worker."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tasks.events import ChoiceEnd, Delta, End, Entry, encode
from tasks.ledger import Answer, Claim, Write

if TYPE_CHECKING:
    from tests.integration.protocol_rig import Rig

TEXTS = itertools.count()


class Attempt:
    """It keeps every entry that it made and sends what is not there yet."""

    def __init__(self, rig: Rig, claim: Claim) -> None:
        self._ledger = rig.ledger
        self.claim = claim
        self.job, self.fence = claim.spec.id, claim.fence
        self.index = sum(len(entry.get("t", ())) for _, entry in rig.log(self.job))
        self.tail: list[tuple[str, int]] = []
        self.sent = 0
        self.end = ""
        self.text = next(TEXTS)  # no two attempts write the same, whatever their fences

    @property
    def seq(self) -> int:
        """The seq of the last entry made."""
        return self.claim.seq + len(self.tail)

    def make(self, tokens: int = 1, end: str = "", *, choice_end: bool = False) -> Attempt:
        """Entries of one engine step: one delta per token, perhaps the end of a choice, perhaps the end."""
        assert not self.end
        indexes = range(self.index, self.index + tokens)
        made: list[Entry] = [Delta(0, i, (i,), f"{self.text}:{i} ") for i in indexes]
        self.index += tokens
        if choice_end:
            made.append(ChoiceEnd(0, "stop"))
        if end:
            made.append(End(end, self.index, 0, "stop" if end == "succeeded" else None))
            self.end = end
        self.tail += [(encode(entry), int(isinstance(entry, Delta))) for entry in made]
        return self

    def write(self, skip: int | None = None) -> Write:
        """What a step would send: all that follows the first `skip` entries (default: those known to be logged)."""
        skip = self.sent if skip is None else skip
        return Write(self.job, self.fence, self.claim.seq + 1 + skip, self.tail[skip:], self.end)

    def send(self) -> str:
        """One step; the verdict. Behind: the next one sends again what the log lost."""
        answer = self.ask(self.write())
        if answer.verdict == "behind":
            self.sent = answer.seq - self.claim.seq
        elif answer.verdict != "fenced":
            self.sent = len(self.tail)
        return answer.verdict

    def ask(self, write: Write) -> Answer:
        """One step of one write."""
        return self._ledger.step([write])[0]

    def renew(self) -> Answer:
        """One renewal."""
        return self._ledger.renew([(self.job, self.fence, self.claim.seq + self.sent)])[0]

    def release(self) -> bool:
        """Give the job back."""
        return self._ledger.release(self.job, self.fence)
