"""The audit's checks of what a client was told: in streams, in looks now and then, and in one piece."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chaos.compare import dense, same, same_logprobs
from chaos.record import START, Account, Place, Seen, Segment, Shape

if TYPE_CHECKING:
    from chaos.audit import Column, Copy, Row


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
            yield from same_logprobs("as streamed", shown, expected, whole)
    yield from _check_finishes(account, whole)
    if whole:
        yield from _check_usage(account)


def _by_index(account: Account) -> Iterator[tuple[Column, str]]:
    """Job events carry the index of their tokens: dense, whatever the store has."""
    if any(segment.shape != "events" for segment in account.current()):
        return
    for choice in range(len(account.ask.answers)):
        seen = [one for one in account.seen() if one.index is not None and one.texts and one.texts[0][0] == choice]
        indices = [one.index + k for one in seen if one.index is not None for k in range(one.tokens)]
        yield from dense(indices, 0, f"token index of choice {choice}, as the client got it")


def _check_finishes(account: Account, whole: bool) -> Iterator[tuple[Column, str]]:
    pairs = [pair for one in account.seen() for pair in one.finishes]
    finishes = dict(pairs)
    if len(pairs) > len(finishes):
        yield "wrong ends", f"the client was told the end of a choice twice: {pairs}"
    expected = {choice: answer.finish for choice, answer in enumerate(account.ask.answers)}
    if any(expected.get(choice) != finish for choice, finish in pairs) or (whole and finishes != expected):
        yield "wrong ends", f"the client was told the finish reasons {pairs}, undisturbed they are {expected}"


def _check_usage(account: Account) -> Iterator[tuple[Column, str]]:
    """The token counts once, if this stream was to have them: the connection that brought the end decides that."""
    last = next((segment for segment in reversed(account.current()) if segment.seen), None)
    wanted = last is not None and (last.shape == "events" or account.wants_usage)
    usages = [one.usage for one in account.seen() if one.usage is not None]
    if usages != [_usage(account)] * wanted:
        yield "wrong ends", f"the client was told the usages {usages}, not {[_usage(account)] * wanted}"


def _usage(account: Account) -> tuple[int, int]:
    return account.ask.prompt_tokens, account.ask.tokens


def check_against_log(account: Account, copy: Copy) -> Iterator[tuple[Column, str]]:
    """Each connection brought a beginning of the log, and the last one all of it if the client was told of an end."""
    log = copy.log
    for segment in account.current():
        yield from _against_log(account, segment, log)
    if account.outcome == "complete" and log and account.last != log[-1][0]:
        yield "gaps", "the client was told of an end before the log's last entry"
    counted = account.ask.prompt_tokens, int(copy.record["tokens"])
    for one in account.seen():
        if one.kind == "end" and one.usage is not None and one.usage != counted:
            yield "wrong ends", f"the event of the end has the usage {one.usage}, the record counts {counted}"


def _against_log(account: Account, segment: Segment, log: Sequence[Row]) -> Iterator[tuple[Column, str]]:
    """A connection brings a beginning of what its shape shows of the log from where it began: this, and no more."""
    seen, known = segment.seen, dict(log)
    wanted = [
        row[0] for row in log if row[0] > segment.after and _shows(row, segment.shape, segment.after, log, account)
    ]
    got, joined = _places(seen, wanted, known)
    phantoms = [place for place in got if place not in known]
    missing = set(wanted[: len(got)]) - set(got)
    if phantoms:
        yield "wrong texts", f"the client got {phantoms[0]}, which the log does not have"
    if missing and min(missing) < got[-1]:
        yield "gaps", f"the client never got {min(missing)}, but what follows"
    elif not phantoms and got != wanted[: len(got)]:
        at = next(k for k, place in enumerate(got) if [place] != wanted[k : k + 1])
        due = wanted[at] if at < len(wanted) else "nothing"
        yield "duplicated", f"the client got {got[at]} where {due} was due"
    for one in seen:
        entry = known.get(one.place)
        if (
            one.place not in joined
            and entry is not None
            and "".join(text for _, text in one.texts) != entry.get("s", "")
        ):
            yield "wrong texts", f"{one.place} was another text for the client than it is in the log"
            return


def _places(
    seen: Sequence[Seen], wanted: Sequence[Place], known: Mapping[Place, dict[str, Any]]
) -> tuple[list[Place], set[Place]]:
    """What the events stand for, and which of them for several deltas: a client that is behind gets neighbours of one
    choice as one event under the last id. Only if its text is exactly theirs.
    """
    places: list[Place] = []
    joined: set[Place] = set()
    for one in seen:
        run = wanted[bisect_right(wanted, places[-1]) if places else 0 : bisect_right(wanted, one.place)]
        rows = [known[place] for place in run]
        alike = len(run) > 1 and all(row["k"] == "delta" and row["c"] == rows[0]["c"] for row in rows)
        if alike and "".join(text for _, text in one.texts) == "".join(row["s"] for row in rows):
            joined.add(one.place)
            places += run
        else:
            places.append(one.place)
    return places, joined


def _shows(row: Row, shape: Shape, after: Place, log: Sequence[Row], account: Account) -> bool:
    kind = row[1]["k"]
    if shape == "events":
        return True
    if kind == "started":
        return shape == "chat" and after == START and row[0] == log[0][0]
    if kind == "delta":
        return bool(row[1]["s"]) or (account.ask.sampling.logprobs is not None and bool(row[1].get("l")))
    return True


def check_told(account: Account, state: str, lossy: bool = False) -> Iterator[tuple[Column, str]]:
    """Answers in one piece, and what was told while the job ran."""
    if account.state is not None and account.state != state:
        yield "wrong ends", f"the client was told {account.state}, the record says {state}"
    before = ""
    for look in account.looks:
        if not lossy and not look.text.startswith(before):
            yield "wrong texts", "a later poll showed less, or another text"
            break
        before = look.text
        yield from same("a poll", look.text, account.ask.answers[0].text, look.state == "succeeded")
    yield from _check_answer(account)


def _check_answer(account: Account) -> Iterator[tuple[Column, str]]:
    told, expected = account.told, account.ask.answers
    if told is None:
        return
    if len(told.texts) != len(expected):
        yield "wrong texts", f"the answer has {len(told.texts)} choices, {len(expected)} were asked for"
        return
    for choice, answer in enumerate(expected):
        where = f"choice {choice} of the answer"
        yield from same(where, told.texts[choice], answer.text, True)
        if answer.logprobs is not None:
            yield from same_logprobs(where, told.logprobs[choice] or (), answer.logprobs, True)
    if told.usage != _usage(account):
        yield "wrong ends", f"the answer's usage is {told.usage}, not {_usage(account)}"
    if told.finishes != tuple(answer.finish for answer in expected):
        yield "wrong ends", f"the answer's finish reasons are {told.finishes}"
