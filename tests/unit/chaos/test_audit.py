"""The audit finds what is wrong, and nothing else. A check that cannot fail would be worth nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from chaos.alone import Answered
from chaos.audit import Copy, audit
from chaos.record import Account, Look, Segment, Shape
from tests.unit.chaos.made_up import ASK, TEXT, URL, Case, account, case, polled, seen

SHAPES: tuple[Shape, ...] = ("events", "chat", "completion")
Spoil = Callable[[Case], object]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("breaks", [(), (1,), (2,), (1, 1), (0, 2)])
def test_what_is_right_passes(shape: Shape, breaks: tuple[int, ...]) -> None:
    assert case(account(shape, breaks)).findings() == []


def test_what_is_right_passes_however_it_was_asked_for() -> None:
    assert case(polled()).findings() == []
    left = account("chat", ())
    left.outcome, left.state = "left", None
    left.segments[0].seen = left.segments[0].seen[:2]
    assert case(left).findings() == []


STORE: dict[str, tuple[Spoil, str]] = {
    "an entry is missing": (lambda c: c.log.pop(2), "gaps"),
    "an entry is there twice": (lambda c: c.log.insert(2, c.log[1]), "duplicated"),
    "entries are out of order": (lambda c: c.log.insert(4, c.log.pop(2)), "duplicated"),
    "a token index is left out": (lambda c: c.entry(5).update(i=3), "gaps"),
    "a token index comes twice": (lambda c: c.entry(5).update(i=1), "duplicated"),
    "another text": (lambda c: c.entry(5).update(s=" xy"), "wrong texts"),
    "a text that stops early": (lambda c: c.entry(5).update(s=" c"), "wrong texts"),
    "another token": (lambda c: c.entry(3).update(t=[99]), "wrong texts"),
    "two ends": (lambda c: c.log.append(((6, 8), c.log[-1][1])), "wrong ends"),
    "an entry after the end": (
        lambda c: c.log.append(((6, 8), {"k": "started", "attempt": 3, "tokens": 4})),
        "wrong ends",
    ),
    "no end": (lambda c: c.log.pop(), "wrong ends"),
    "an end that the record does not know": (lambda c: c.record.update(state="running"), "lost"),
    "an end of another state": (lambda c: c.entry(7).update(state="failed"), "wrong ends"),
    "another finish reason": (lambda c: c.entry(7).update(f="length"), "wrong ends"),
    "a record that counts another number of entries": (lambda c: c.record.update(seq="8"), "gaps"),
    "a record that counts another number of tokens": (lambda c: c.record.update(tokens="5"), "wrong ends"),
    "an end that counts another number of tokens": (lambda c: c.entry(7).update(tokens=3), "wrong ends"),
    "a job that still waits": (lambda c: c.record.update(state="queued"), "lost"),
}


@pytest.mark.parametrize("name", STORE)
def test_what_is_wrong_in_the_store_is_found(name: str) -> None:
    spoilt = case()
    spoil, column = STORE[name]
    spoil(spoilt)
    assert column in spoilt.columns(), spoilt.findings()


CLIENT: dict[str, tuple[Spoil, str]] = {
    "an event came twice": (
        lambda c: c.account.segments[1].seen.insert(0, c.account.segments[0].seen[-1]),
        "duplicated",
    ),
    "events came out of order": (lambda c: c.account.segments[1].seen.reverse(), "duplicated"),
    "an event never came": (lambda c: c.account.segments[1].seen.pop(1), "gaps"),
    "the last events never came": (lambda c: c.account.segments[1].seen.pop(), "gaps"),
    "another text": (lambda c: c.spoil(1, 2, texts=((0, " xy"),)), "wrong texts"),
    "a text that stops early": (lambda c: c.spoil(1, 2, texts=((0, " c"),)), "wrong texts"),
    "an event that the log does not have": (lambda c: c.spoil(1, 2, place=(4, 5)), "wrong texts"),
    "a token index is left out": (lambda c: c.spoil(1, 2, index=3), "gaps"),
    "a token index comes twice": (lambda c: c.spoil(1, 2, index=1), "duplicated"),
    "another finish reason": (lambda c: c.spoil(1, -1, finishes=((0, "length"),)), "wrong ends"),
    "no finish reason": (lambda c: c.spoil(1, -1, finishes=()), "wrong ends"),
    "another usage": (lambda c: c.spoil(1, -1, usage=(5, 3)), "wrong ends"),
    "another end": (lambda c: setattr(c.account, "state", "failed"), "wrong ends"),
    "no end after a long time": (lambda c: setattr(c.account, "outcome", "gave up"), "lost"),
    "the harness failed": (lambda c: setattr(c.account, "outcome", "bug"), "lost"),
    "one key, two jobs": (lambda c: c.account.other_ids.append("job_2"), "duplicated"),
}


@pytest.mark.parametrize("name", CLIENT)
def test_what_a_client_got_wrong_is_found(name: str) -> None:
    spoilt = case()
    spoil, column = CLIENT[name]
    spoil(spoilt)
    assert column in spoilt.columns(), spoilt.findings()


POLLED: dict[str, tuple[Spoil, str]] = {
    "a poll that showed less": (lambda c: c.account.looks.insert(2, Look(2.5, "running", "a")), "wrong texts"),
    "a poll with another text": (lambda c: c.account.looks.insert(2, Look(2.5, "running", "abx")), "wrong texts"),
    "a result with another text": (lambda c: _tell(c, texts=("ab",)), "wrong texts"),
    "a result with another usage": (lambda c: _tell(c, usage=(4, 4)), "wrong ends"),
    "a result with another finish reason": (lambda c: _tell(c, finishes=("length",)), "wrong ends"),
}


def _tell(spoilt: Case, **changes: object) -> None:
    assert spoilt.account.told is not None
    spoilt.account.told = replace(spoilt.account.told, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", POLLED)
def test_what_was_told_wrongly_is_found(name: str) -> None:
    spoilt = case(polled())
    spoil, column = POLLED[name]
    spoil(spoilt)
    assert column in spoilt.columns(), spoilt.findings()


def test_a_job_that_the_store_does_not_have_is_lost() -> None:
    assert [finding.column for finding in audit(account(), None)] == ["lost"]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("spoil", ["drop", "repeat"])
def test_no_single_entry_of_a_log_can_go_or_come_twice(number: int, spoil: str) -> None:
    spoilt = case(polled())
    if spoil == "drop":
        spoilt.log.pop(number)
    else:
        spoilt.log.insert(number, spoilt.log[number])
    spoilt.record["seq"] = str(len(spoilt.log))  # a record that agrees does not make it right
    assert spoilt.columns() & {"gaps", "duplicated", "wrong ends"}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spoil", ["drop", "repeat", "later"])
def test_no_single_event_can_go_or_come_twice(shape: Shape, spoil: str) -> None:
    for number in range(len(seen(shape))):
        spoilt = case(account(shape, ()))
        events = spoilt.account.segments[0].seen
        if spoil == "drop":
            events.pop(number)
        else:
            events.insert(number if spoil == "repeat" else len(events), events[number])
        assert spoilt.columns() & {"gaps", "duplicated"}, (shape, number)


def test_a_rewound_stream_counts_from_its_new_beginning() -> None:
    made = account("events", ())
    made.segments.insert(0, Segment("events", URL, (0, 0), seen=made.segments[0].seen[:3], how="rewind"))
    assert case(made).findings() == []


def test_after_lost_writes_only_the_client_and_the_undisturbed_run_are_compared() -> None:
    made = account("events", ())
    made.segments[0].seen = [replace(one, place=(9, one.place[1])) for one in made.segments[0].seen]
    copy = case(made)
    assert "wrong texts" in copy.columns(), "ids that the log does not have"
    lossy = [f for f in audit(made, _copy(copy), lossy=True) if f.column != "lost"]
    assert lossy == []
    copy.spoil(0, 4, texts=((0, " xy"),))
    assert "wrong texts" in {f.column for f in audit(made, _copy(copy), lossy=True)}


def _copy(spoilt: Case) -> Copy:
    return Copy(spoilt.record, spoilt.log)


def test_logprobs_are_compared() -> None:
    logprobs = tuple((token, -0.5) for token in ("ab", " ", "cd", ""))
    scored = Answered(TEXT, (10, 11, 12, 13), "stop", logprobs)
    ask = replace(ASK, answers=(scored,), sampling=replace(ASK.sampling, logprobs=0))

    def fresh(value: float, count: int = 4) -> Case:
        made = polled()
        made.ask = ask
        spoilt = case(made)
        _tell(spoilt, logprobs=(logprobs,))
        for number, seq in enumerate((2, 3, 5, 6)[:count]):
            spoilt.entry(seq)["l"] = [{"token": logprobs[number][0], "logprob": value}]
        return spoilt

    def told(*values: float) -> Case:
        spoilt = fresh(-0.5)
        _tell(spoilt, logprobs=(tuple((one[0], value) for one, value in zip(logprobs, values, strict=False)),))
        return spoilt

    assert fresh(-0.5).findings() == []
    assert told(-0.5, -0.5, -0.5, -0.6).columns() == {"wrong texts"}
    assert told(-0.5, -0.5, -0.5).columns() == {"wrong texts"}
    assert told().columns() == {"wrong texts"}
    assert fresh(-0.5005).findings() == [], "the last digits may differ"
    assert fresh(-0.6).columns() == {"wrong texts"}
    assert fresh(-0.5, count=3).columns() == {"wrong texts"}


def test_a_client_that_never_read_is_judged_by_the_store_alone() -> None:
    assert case(Account("disconnect", ASK, "job_1", outcome="left")).findings() == []
