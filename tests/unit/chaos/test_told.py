"""The audit finds what need not be there, and looks at what each kind of client has to be told besides the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from chaos.alone import Answered
from chaos.audit import Copy, Row, audit
from chaos.record import Account, Seen, Segment, Shape, told_of
from chaos.told import _places
from tests.unit.chaos.made_up import ASK, URL, Case, account, case, log, polled, record, seen

Spoil = Callable[[Case], object]

STOP = {"k": "choice_end", "c": 0, "f": "stop"}


def _end_early(spoilt: Case) -> None:
    """Its only choice ends, goes on, and the job's end does not mention it."""
    for name in ("c", "f"):
        del spoilt.entry(7)[name]
    spoilt.insert(6, STOP)


def _cancel_after_a_choice(spoilt: Case) -> None:
    spoilt.cancel()
    spoilt.insert(6, STOP)


SURPLUS: dict[str, tuple[Spoil, str, str]] = {
    "a choice that ends twice": (lambda c: c.insert(7, STOP), "wrong ends", "ended 2 times in the log"),
    "a choice that goes on after its end": (_end_early, "wrong ends", "goes on after its end in the log"),
    "a choice that ended before its text": (_cancel_after_a_choice, "wrong texts", "in the log: from character 2 on"),
    "a choice that ended otherwise": (lambda c: c.insert(7, STOP | {"f": "length"}), "wrong ends", "undisturbed by"),
    "an entry with nothing": (
        lambda c: c.insert(6, {"k": "delta", "c": 0, "i": 3, "t": [], "s": ""}),
        "duplicated",
        "neither a token nor a text",
    ),
    "an attempt that began twice": (
        lambda c: c.insert(5, {"k": "started", "attempt": 2, "tokens": 2}),
        "duplicated",
        "begins attempt 2",
    ),
    "an attempt with other tokens before it": (lambda c: c.entry(4).update(tokens=1), "duplicated", "due at 2"),
}


@pytest.mark.parametrize("name", SURPLUS)
def test_a_log_has_nothing_that_need_not_be_there(name: str) -> None:
    spoilt = case(polled())
    if name == "a choice that ended before its text":
        spoilt = case()
        spoilt.entry(5)["s"] = ""  # so that what was logged is a beginning, and only the end of the choice is wrong
    spoil, column, words = SURPLUS[name]
    spoil(spoilt)
    assert any(one.column == column and words in one.text for one in spoilt.findings()), spoilt.findings()


def _show(spoilt: Case, number: int, seq: int, kind: str) -> None:
    """The client gets an entry that streams of its shape do not show."""
    place = next(place for place, _ in spoilt.log if place[1] == seq)
    spoilt.account.segments[0].seen.insert(number, Seen(place, 0.0, kind))


SHOWN: dict[str, tuple[Shape, Spoil, str, str]] = {
    "an empty delta": ("chat", lambda c: _show(c, 2, 3, "delta"), "duplicated", "(1, 3) where (5, 5) was due"),
    "a second role": ("chat", lambda c: _show(c, 2, 4, "started"), "duplicated", "(5, 4) where (5, 5) was due"),
    "a role that no completion has": ("completion", lambda c: _show(c, 0, 1, "started"), "duplicated", "(1, 1) where"),
    "more than there is": (
        "chat",
        lambda c: c.account.segments[0].seen.append(c.account.segments[0].seen[-1]),
        "duplicated",
        "where nothing was due",
    ),
    "a choice that finished twice": (
        "events",
        lambda c: c.spoil(0, -2, finishes=((0, "stop"),)),
        "wrong ends",
        "the end of a choice twice",
    ),
    "no token counts": ("chat", lambda c: c.spoil(0, -1, usage=None), "wrong ends", "the usages []"),
    "no token counts of a completion": ("completion", lambda c: c.spoil(0, -1, usage=None), "wrong ends", "usages []"),
    "no token counts at the end": ("events", lambda c: c.spoil(0, -1, usage=None), "wrong ends", "the usages []"),
    "token counts twice": ("chat", lambda c: c.spoil(0, 1, usage=(5, 4)), "wrong ends", "the usages [(5, 4), (5, 4)]"),
    "token counts unasked": ("chat", lambda c: setattr(c.account, "wants_usage", False), "wrong ends", "not []"),
    "other token counts": ("chat", lambda c: c.spoil(0, -1, usage=(4, 4)), "wrong ends", "the usages [(4, 4)]"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_stream_shows_nothing_that_need_not_be_there(name: str) -> None:
    shape, spoil, column, words = SHOWN[name]
    spoilt = case(account(shape, ()))
    spoil(spoilt)
    assert any(one.column == column and words in one.text for one in spoilt.findings()), spoilt.findings()


@pytest.mark.parametrize("shape", ["chat", "completion"])
def test_without_a_wish_for_token_counts_there_are_none(shape: Shape) -> None:
    made = account(shape, (1,))
    made.wants_usage = False
    made.segments[-1].seen[-1] = replace(made.segments[-1].seen[-1], usage=None)
    assert case(made).findings() == []


def test_the_connection_with_the_end_decides_about_token_counts() -> None:
    """Begun as a chat, taken up as job events, whose end always has them; and the other way they come with the chat."""
    ends: tuple[Shape, ...] = ("events", "chat")
    for end in ends:
        made = account("chat", (2,))
        made.wants_usage = end == "chat"
        made.segments[1] = account(end, (3 if end == "events" else 2,)).segments[1]
        made.segments[1].after = (1, 2)
        if end == "events":
            made.segments[1].seen.insert(0, seen("events")[2])
        assert case(made).findings() == []
    made.segments.append(Segment("chat", URL, made.last, how="end"))  # it came back for the end mark alone
    assert case(made).findings() == []


def test_every_end_has_the_token_counts_of_the_record() -> None:
    cancelled = case()
    cancelled.cancel()
    assert cancelled.findings() == []
    cancelled.spoil(-1, -1, usage=(5, 4))
    assert [(one.column, "the record counts (5, 3)" in one.text) for one in cancelled.findings()] == [
        ("wrong ends", True)
    ]


def test_a_cancelled_job_without_an_end_must_be_cancelled() -> None:
    endless = Answered("x", tuple(range(4001)), "stop")
    made = Account("cancel", replace(ASK, answers=(endless,)), "job_1", outcome="complete")

    def ends(state: str, lossy: bool = False) -> list[str]:
        copy = Copy(record() | {"state": state}, log())
        return [one.text for one in audit(made, copy, lossy) if "without an end" in one.text]

    assert ends("cancelled") == []
    assert len(ends("succeeded")) == 1
    assert ends("succeeded", lossy=True) == []
    made.kind = "disconnect"
    assert ends("succeeded") == []


def test_a_job_that_was_named_in_an_error_and_never_answered_is_lost() -> None:
    made = polled()
    made.outcome = "refused"
    assert case(made).columns() == {"lost"}


def test_a_key_may_make_a_second_job_only_if_the_first_was_lost_with_it() -> None:
    made = account()
    made.other_ids.append("job_2")
    assert {one.column for one in audit(made, Copy(record(), log()), lossy=True)} == {"duplicated"}
    assert {one.column for one in audit(made, None, lossy=True)} == {"taken back"}
    assert {one.column for one in audit(made, None)} == {"lost", "duplicated"}


def test_answers_are_read_with_their_log_probabilities() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 4}
    rows: list[dict[str, object]] = [
        {"message": {"content": "a"}, "logprobs": {"content": [{"token": "a", "logprob": -0.5}]}},
        {"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [-0.5]}},
        {"text": "a", "logprobs": None},
    ]
    told = [told_of({"choices": [row | {"finish_reason": "stop"}], "usage": usage}).logprobs for row in rows]
    assert told == [((("a", -0.5),),), ((("a", -0.5),),), (None,)]


def test_an_entry_that_is_none_is_a_finding() -> None:
    strange: Any = 7
    rows = [*log()[:3], ((5, 4), strange)]
    assert [one.column for one in audit(account(), Copy(record(), rows))] == ["wrong texts"]


@pytest.mark.parametrize("spoil", ["nothing", "a lost character", "a repeated character"])
def test_neighbouring_deltas_may_come_as_one_event_if_their_text_is_exact(spoil: str) -> None:
    """What a client that is behind gets: the last id, and the texts of all of them."""
    log: list[Row] = [((7, seq), {"k": "delta", "c": 0, "s": f"{seq} "}) for seq in range(2, 8)]
    text = "".join(row["s"] for _, row in log)
    text = {"nothing": text, "a lost character": text[:-2], "a repeated character": text + " "}[spoil]
    places, joined = _places([Seen((7, 7), 0.0, "delta", ((0, text),))], [at for at, _ in log], dict(log))
    assert (places, joined) == (([at for at, _ in log], {(7, 7)}) if spoil == "nothing" else ([(7, 7)], set()))
