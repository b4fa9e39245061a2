"""The judge, pure: one job's record by its client, its undisturbed answer, and a copy of what the store has, compared.

Three sources that know nothing of each other. Every check names the column of the table that its finding counts in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from chaos.alone import Answered
from chaos.compare import dense, same, same_logprobs
from chaos.prompts import ENDLESS
from chaos.record import TERMINAL, Account, Place
from chaos.told import check_against_log, check_stream, check_told

Column = Literal["lost", "duplicated", "gaps", "wrong texts", "wrong ends", "leaks", "errors", "troubles", "taken back"]
#: errors: shown to a client though no fault explains them; troubles: promises that a fault itself saw broken; taken
#: back: what a Redis that loses its last writes may lose, as the documents say. Only there it is no broken promise.
COLUMNS: tuple[Column, ...] = get_args(Column)
Row = tuple[Place, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken promise."""

    column: Column
    job: str
    text: str


@dataclass(frozen=True, slots=True)
class Copy:
    """What the store had of a job when it was looked at: the record's fields and the log. None: no such job."""

    record: dict[str, str]
    log: Sequence[Row]


def audit(account: Account, copy: Copy | None, lossy: bool = False) -> list[Finding]:
    """Everything that is wrong with one job that was accepted and whose client is through.

    `lossy`: Redis may have lost what a client has; then its log may have gone another way since.
    """
    strange = [place for place, entry in copy.log if not isinstance(entry, dict) or "k" not in entry] if copy else []
    if strange:
        return [Finding("wrong texts", account.job, f"{strange[0]} in the log is no entry at all")]
    return [Finding(column, account.job, text) for column, text in _findings(account, copy, lossy)]


def _findings(account: Account, copy: Copy | None, lossy: bool) -> Iterator[tuple[Column, str]]:
    if not (lossy and copy is None):  # a key that was lost together with its job may make another one
        for other in account.other_ids:
            yield "duplicated", f"the same idempotency key made {other} as well"
    lost: Column = "taken back" if lossy and (copy is None or account.told_of_loss) else "lost"
    if account.outcome in ("gave up", "bug", "refused"):
        yield lost, f"the client did not get to the end: {account.outcome}"
    if copy is None:
        yield lost, "the store has no such job"
        return
    if copy.record["state"] not in TERMINAL:
        yield "lost", f"it never ended: {copy.record['state']}"
    # What a cancelled answer held back for a stop text goes out with its end.
    unread = lost if account.outcome == "gave up" else "wrong texts"
    yield from ((unread if column == "wrong texts" else column, text) for column, text in check_log(account, copy))
    if account.reads:
        yield from check_stream(account, (account.state if lossy else copy.record["state"]) == "succeeded")
        if not lossy:
            yield from check_against_log(account, copy)
    for column, text in check_told(account, copy.record["state"], lossy):
        yield "taken back" if lossy and column == "wrong ends" else column, text
    if account.kind == "cancel" and account.ask.tokens >= ENDLESS and not lossy and copy.record["state"] != "cancelled":
        yield "wrong ends", f"a job without an end was cancelled, but it is {copy.record['state']}"


def check_log(account: Account, copy: Copy) -> Iterator[tuple[Column, str]]:
    """The store's log by itself, against its record and the undisturbed answer."""
    record, log = copy.record, copy.log
    yield from dense((place[1] for place, _ in log), 1, "seq")
    places = [place for place, _ in log]
    if places != sorted(places):
        yield "duplicated", "the log is not in order"
    ends = [number for number, (_, entry) in enumerate(log) if entry["k"] == "end"]
    if len(ends) > 1:
        yield "wrong ends", f"the log has {len(ends)} terminal entries"
    if ends and ends[-1] != len(log) - 1:
        yield "wrong ends", "the log goes on after its end"
    if record["state"] in TERMINAL and not ends:
        yield "wrong ends", f"{record['state']}, but the log has no end"
    if ends and log[ends[-1]][1]["state"] != record["state"]:
        yield "wrong ends", f"the log ended {log[ends[-1]][1]['state']}, the record says {record['state']}"
    if int(record["seq"]) != len(log):
        yield "gaps", f"the record counts {record['seq']} entries, the log has {len(log)}"
    yield from _check_marks(log)
    for choice, expected in enumerate(account.ask.answers):
        yield from _check_choice(choice, expected, log, record["state"] == "succeeded")
    tokens = sum(len(entry["t"]) for _, entry in log if entry["k"] == "delta")
    counted = {int(record["tokens"]), *(log[number][1]["tokens"] for number in ends)}
    if counted != {tokens}:
        yield "wrong ends", f"{tokens} tokens were logged, but {sorted(counted)} counted"


def _check_choice(choice: int, expected: Answered, log: Sequence[Row], whole: bool) -> Iterator[tuple[Column, str]]:
    rows = [entry for _, entry in log if entry["k"] == "delta" and entry["c"] == choice]
    yield from _check_finish(choice, expected, log, whole)
    whole = whole or any(entry["k"] == "choice_end" and entry["c"] == choice for _, entry in log)
    indices = [entry["i"] + k for entry in rows for k in range(len(entry["t"]))]
    yield from dense(indices, 0, f"token index of choice {choice}")
    tokens = tuple(token for entry in rows for token in entry["t"])
    text = "".join(entry["s"] for entry in rows)
    yield from same(f"choice {choice} in the log", text, expected.text, whole)
    if tokens != (expected.tokens if whole else expected.tokens[: len(tokens)]):
        yield "wrong texts", f"choice {choice} in the log has other tokens than an undisturbed run"
    if expected.logprobs is not None:
        found = [(one["token"], one["logprob"]) for entry in rows for one in entry.get("l") or ()]
        yield from same_logprobs(f"choice {choice} in the log", found, expected.logprobs, whole)


def _check_finish(choice: int, expected: Answered, log: Sequence[Row], whole: bool) -> Iterator[tuple[Column, str]]:
    """A choice ends once, as undisturbed, and nothing of it follows."""
    mine = [entry for _, entry in log if entry.get("c") == choice]
    finishes = [entry["f"] for entry in mine if "f" in entry]
    if len(finishes) > 1:
        yield "wrong ends", f"choice {choice} ended {len(finishes)} times in the log"
    if finishes and "f" not in mine[-1]:
        yield "wrong ends", f"choice {choice} goes on after its end in the log"
    if (whole or any(entry["k"] == "choice_end" for entry in mine)) and finishes[:1] != [expected.finish]:
        yield "wrong ends", f"choice {choice} ended by {finishes[:1]}, undisturbed by {expected.finish}"


def _check_marks(log: Sequence[Row]) -> Iterator[tuple[Column, str]]:
    """Entries that carry nothing of the answer are there for a reason: one for every attempt."""
    attempt = tokens = 0
    for place, entry in log:
        if entry["k"] == "started":
            attempt += 1
            if (entry["attempt"], entry["tokens"]) != (attempt, tokens):
                yield "duplicated", f"{place} begins attempt {entry['attempt']}, where {attempt} was due at {tokens}"
        elif entry["k"] == "delta":
            tokens += len(entry["t"])
            if not entry["t"] and not entry["s"]:
                yield "duplicated", f"{place} has neither a token nor a text"
