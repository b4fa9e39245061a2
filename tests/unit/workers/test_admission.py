"""Who may claim, and when."""

from __future__ import annotations

import threading

from tests.unit.workers.parts import make_attempt
from workers.admission import Admission


def waits(admission: Admission) -> tuple[threading.Thread, list[bool]]:
    """A lane that asks for a place, in a thread of its own."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(admission.enter()))
    thread.start()
    thread.join(0.05)
    return thread, answers


def test_places_are_sequences_not_jobs() -> None:
    admission = Admission(4)
    big = make_attempt("hi", n=3)
    assert admission.enter()
    admission.admit(big)
    assert admission.enter()
    small = make_attempt("hi")
    admission.admit(small)
    thread, answers = waits(admission)
    assert answers == []
    admission.leave(small)
    thread.join(5)
    assert answers == [True]


def test_lanes_claim_one_after_the_other() -> None:
    admission = Admission(4)
    assert admission.enter()
    thread, answers = waits(admission)
    assert answers == []
    admission.leave(None)
    thread.join(5)
    assert answers == [True]


def test_nobody_claims_beside_a_suspect_until_it_has_proved_itself() -> None:
    admission = Admission(4)
    suspect = make_attempt("hi", strikes=1)
    assert admission.enter()
    admission.admit(suspect)
    thread, answers = waits(admission)
    assert answers == []
    suspect.suspect = False
    admission.wake()
    thread.join(5)
    assert answers == [True]


def test_a_drain_turns_everybody_away() -> None:
    admission = Admission(1)
    assert admission.enter()
    admission.admit(make_attempt("hi"))
    thread, answers = waits(admission)
    admission.close()
    thread.join(5)
    assert answers == [False]
    assert not admission.enter()
