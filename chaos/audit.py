"""The judge, pure: one job's record by its client, its undisturbed answer, and a copy of what the store has, compared.

Three sources that know nothing of each other. Every check names the column of the table that its finding counts in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from chaos.alone import Answered
from chaos.record import START, Account, Logprob, Place, Seen, Shape

Column = Literal["lost", "duplicated", "gaps", "wrong texts", "wrong ends", "leaks", "errors", "troubles"]
#: errors: shown to a client though no fault explains them; troubles: promises that a fault itself saw broken.
COLUMNS: tuple[Column, ...] = get_args(Column)
Row = tuple[Place, dict[str, Any]]
#: As clients know them: the judge takes nothing from the store's own code.
TERMINAL = ("succeeded", "failed", "cancelled")

#: fp32, but not the same sums: neighbours in a batch may change the last digits of a log probability.
LOGPROB_TOLERANCE = 2e-3


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
    return [Finding(column, account.job, text) for column, text in _findings(account, copy, lossy)]


def _findings(account: Account, copy: Copy | None, lossy: bool) -> Iterator[tuple[Column, str]]:
    for other in account.other_ids:
        yield "duplicated", f"the same idempotency key made {other} as well"
    if account.outcome in ("gave up", "bug"):
        yield "lost", f"the client did not get to the end: {account.outcome}"
    if copy is None:
        yield "lost", "the store has no such job"
        return
    if copy.record["state"] not in TERMINAL:
        yield "lost", f"it never ended: {copy.record['state']}"
    yield from check_log(account, copy)
    if account.reads:
        yield from check_stream(account, (account.state if lossy else copy.record["state"]) == "succeeded")
        if not lossy:
            yield from check_against_log(account, copy.log)
    yield from check_told(account, copy.record["state"], lossy)


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
    for choice, expected in enumerate(account.ask.answers):
        yield from _check_choice(choice, expected, log, record["state"] == "succeeded")
    tokens = sum(len(entry["t"]) for _, entry in log if entry["k"] == "delta")
    counted = {int(record["tokens"]), *(log[number][1]["tokens"] for number in ends)}
    if counted != {tokens}:
        yield "wrong ends", f"{tokens} tokens were logged, but {sorted(counted)} counted"


def _check_choice(choice: int, expected: Answered, log: Sequence[Row], whole: bool) -> Iterator[tuple[Column, str]]:
    rows = [entry for _, entry in log if entry["k"] == "delta" and entry["c"] == choice]
    indices = [entry["i"] + k for entry in rows for k in range(len(entry["t"]))]
    yield from dense(indices, 0, f"token index of choice {choice}")
    tokens = tuple(token for entry in rows for token in entry["t"])
    text = "".join(entry["s"] for entry in rows)
    yield from same(f"choice {choice} in the log", text, expected.text, whole)
    if tokens != (expected.tokens if whole else expected.tokens[: len(tokens)]):
        yield "wrong texts", f"choice {choice} in the log has other tokens than an undisturbed run"
    finish = next((entry["f"] for _, entry in log if entry.get("c") == choice and "f" in entry), None)
    if whole and finish != expected.finish:
        yield "wrong ends", f"choice {choice} ended by {finish}, undisturbed by {expected.finish}"
    if expected.logprobs is not None:
        found = [(one["token"], one["logprob"]) for entry in rows for one in entry.get("l") or ()]
        yield from _same_logprobs(f"choice {choice} in the log", found, expected.logprobs, whole)


def check_stream(account: Account, succeeded: bool) -> Iterator[tuple[Column, str]]:
    """What the client's connections brought, by itself: every event once, in order, the text of an undisturbed run."""
    places = [one.place for one in account.seen()]
    if len(set(places)) < len(places):
        yield "duplicated", f"the client got {len(places) - len(set(places))} events twice"
    if places != sorted(places):
        yield "duplicated", "the client got events out of order"
    yield from _by_index(account)
    whole = succeeded and account.outcome == "complete"
    for choice, text in enumerate(account.texts()):
        yield from same(f"choice {choice} as streamed", text, account.ask.answers[choice].text, whole)
        expected = account.ask.answers[choice].logprobs
        if expected is not None and len(account.ask.answers) == 1:
            shown = [one for each in account.seen() for one in each.logprobs or ()]
            yield from _same_logprobs("as streamed", shown, expected, whole)
    yield from _check_finishes(account, whole)


def check_against_log(account: Account, log: Sequence[Row]) -> Iterator[tuple[Column, str]]:
    """Each connection brought a beginning of the log, and the last one all of it if the client was told of an end."""
    for segment in account.current():
        yield from _against_log(account, segment.shape, segment.after, segment.seen, log)
    if account.outcome == "complete" and log and account.last != log[-1][0]:
        yield "gaps", "the client was told of an end before the log's last entry"


def _check_finishes(account: Account, whole: bool) -> Iterator[tuple[Column, str]]:
    finishes = dict(pair for one in account.seen() for pair in one.finishes)
    expected = {choice: answer.finish for choice, answer in enumerate(account.ask.answers)}
    if any(expected[choice] != finish for choice, finish in finishes.items()) or (whole and finishes != expected):
        yield "wrong ends", f"the client was told the finish reasons {finishes}, undisturbed they are {expected}"
    usage = next((one.usage for one in account.seen() if one.usage), None)
    if usage is not None and whole and usage != _usage(account):
        yield "wrong ends", f"the client was told the usage {usage}, not {_usage(account)}"


def _usage(account: Account) -> tuple[int, int]:
    return account.ask.prompt_tokens, account.ask.tokens


def _against_log(
    account: Account, shape: Shape, after: Place, seen: Sequence[Seen], log: Sequence[Row]
) -> Iterator[tuple[Column, str]]:
    """A connection brings a beginning of what its shape shows of the log after `after`."""
    wanted = [row for row in log if row[0] > after and _shows(row, shape, after, log, account)]
    known = dict(log)
    phantoms = [one.place for one in seen if one.place not in known]
    if phantoms:
        yield "wrong texts", f"the client got {phantoms[0]}, which the log does not have"
    missing = {place for place, _ in wanted[: len(seen)]} - {one.place for one in seen}
    if missing and seen and min(missing) < seen[-1].place:
        yield "gaps", f"the client never got {min(missing)}, but what follows"
    for one in seen:
        entry = known.get(one.place)
        if entry is not None and "".join(text for _, text in one.texts) != entry.get("s", ""):
            yield "wrong texts", f"{one.place} was another text for the client than it is in the log"
            return


def _shows(row: Row, shape: Shape, after: Place, log: Sequence[Row], account: Account) -> bool:
    kind = row[1]["k"]
    if shape == "events":
        return True
    if kind == "started":
        return shape == "chat" and after == START and row[0] == log[0][0]
    if kind == "delta":
        return bool(row[1]["s"]) or (account.ask.sampling.logprobs is not None and bool(row[1].get("l")))
    return True


def _by_index(account: Account) -> Iterator[tuple[Column, str]]:
    """Job events carry the index of their tokens: dense, whatever the store has."""
    if any(segment.shape != "events" for segment in account.current()):
        return
    for choice in range(len(account.ask.answers)):
        seen = [one for one in account.seen() if one.index is not None and one.texts and one.texts[0][0] == choice]
        indices = [one.index + k for one in seen if one.index is not None for k in range(one.tokens)]
        yield from dense(indices, 0, f"token index of choice {choice}, as the client got it")


def check_told(account: Account, state: str, lossy: bool = False) -> Iterator[tuple[Column, str]]:
    """Answers in one piece, and what was told while the job ran."""
    expected = account.ask.answers
    if account.state is not None and account.state != state:
        yield "wrong ends", f"the client was told {account.state}, the record says {state}"
    before = ""
    for look in account.looks:
        if not lossy and not look.text.startswith(before):
            yield "wrong texts", "a later poll showed less, or another text"
            break
        before = look.text
        yield from same("a poll", look.text, expected[0].text, look.state == "succeeded")
    if account.told is not None:
        for choice, answer in enumerate(expected):
            yield from same(f"choice {choice} of the answer", account.told.texts[choice], answer.text, True)
        if account.told.usage != _usage(account):
            yield "wrong ends", f"the answer's usage is {account.told.usage}, not {_usage(account)}"
        if account.told.finishes != tuple(answer.finish for answer in expected):
            yield "wrong ends", f"the answer's finish reasons are {account.told.finishes}"


def dense(numbers: Iterable[int], first: int, what: str) -> Iterator[tuple[Column, str]]:
    """Each number once, in order, none left out; says the first that is not."""
    due = first
    for number in numbers:
        if number != due:
            yield ("gaps" if number > due else "duplicated"), f"{what} {number} where {due} was due"
            return
        due += 1


def same(where: str, text: str, expected: str, whole: bool) -> Iterator[tuple[Column, str]]:
    """The text of an undisturbed run, or a beginning of it."""
    if text == expected or (not whole and expected.startswith(text)):
        return
    at = next(
        (k for k, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), min(len(text), len(expected))
    )
    shown, wanted = text[max(0, at - 10) : at + 30], expected[max(0, at - 10) : at + 30]
    yield "wrong texts", f"{where}: from character {at} on {shown!r}, undisturbed {wanted!r}"


def _same_logprobs(
    where: str, found: Sequence[Logprob], expected: Sequence[Logprob], whole: bool
) -> Iterator[tuple[Column, str]]:
    if len(found) > len(expected) or (whole and len(found) != len(expected)):
        yield "wrong texts", f"{where}: {len(found)} log probabilities, undisturbed {len(expected)}"
        return
    for (token, value), (wanted, undisturbed) in zip(found, expected, strict=False):
        if token != wanted or not math.isclose(value, undisturbed, abs_tol=LOGPROB_TOLERANCE):
            yield "wrong texts", f"{where}: {token!r} {value:.4f}, undisturbed {wanted!r} {undisturbed:.4f}"
            return
