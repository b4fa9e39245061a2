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


def test_of_many_waiting_lanes_each_gets_its_turn() -> None:
    """One is woken at a time, and wakes the next, also past a ticket that finds no job."""
    admission = Admission(8)
    assert admission.enter()
    claimed: list[bool] = []

    def lane(number: int) -> None:
        assert admission.enter()
        attempt = None if number % 2 else make_attempt("hi")
        if attempt is not None:
            admission.admit(attempt)
        claimed.append(attempt is not None)
        admission.leave(attempt)

    lanes = [threading.Thread(target=lane, args=(number,)) for number in range(32)]
    for one in lanes:
        one.start()
    admission.leave(None)
    for one in lanes:
        one.join(10)
    assert sorted(claimed) == [False] * 16 + [True] * 16
