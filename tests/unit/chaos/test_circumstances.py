"""What a fault explains, and what nothing explains."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from chaos.audit import Copy
from chaos.circumstances import POISON_LOSSES, Sky, ending, recoveries, unexplained
from chaos.record import Account, Shown
from tests.unit.chaos.made_up import ASK, URL, account, log, record

OTHER = "http://127.0.0.1:2"


@dataclass
class Fault:
    """What a storm notes."""

    kind: str
    at: float = 100.0
    until: float = 101.0
    target: str = "api-0"
    jobs: tuple[str, ...] = ()


def sky(*faults: Fault, lossy: bool = False, calm_until: float = 0.0) -> Sky:
    """A sky with two APIs."""
    return Sky(faults, calm_until, lossy, {"api-0": URL, "api-1": OTHER})


def shown(where: str, code: str, at: float = 102.0, url: str = URL) -> Account:
    """A client that was shown one error."""
    made = Account("stream", ASK, "job_1")
    made.shown = [Shown(where, code, at, url + "/v1/jobs")]
    return made


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("submit", "internal_error"), ("stream", "eof"), ("stream", "internal_error"), ("stream", "history_lost"),
        ("stream", "done_without_end"), ("resume", "job_not_found"), ("resume", "unknown_event_id"),
        ("stream", "silent"), ("submit", "status_500"), ("stream", "rewind"), ("stream", "malformed"),
        ("stream", "store_unavailable"), ("answer", "job_not_finished"),
    ],
)  # fmt: skip
def test_no_fault_explains_a_defect(where: str, code: str) -> None:
    everything = [Fault(kind) for kind in ("api_kill", "redis_kill", "worker_kill", "workers_gone", "kill_commands")]
    assert [finding.column for finding in unexplained(shown(where, code), sky(*everything))] == ["errors"]


@pytest.mark.parametrize(
    ("where", "code", "kind"),
    [
        ("submit", "store_unavailable", "redis_full"), ("submit", "no_worker", "workers_gone"),
        ("resume", "unreachable", "api_kill"), ("stream", "cut", "api_kill"), ("stream", "server_shutdown", "api_stop"),
        ("poll", "store_unavailable", "redis_pause"), ("submit", "unreachable", "supervisor_kill"),
    ],
)  # fmt: skip
def test_a_fault_explains_what_it_does_and_nothing_without_it(where: str, code: str, kind: str) -> None:
    made = shown(where, code)
    assert not list(unexplained(made, sky(Fault(kind))))
    assert list(unexplained(made, sky())), "no fault, no excuse"
    assert list(unexplained(made, sky(Fault("ticket_lost")))), "another fault is no excuse"
    assert list(unexplained(made, sky(Fault(kind, at=200.0, until=201.0)))), "a later fault is no excuse"
    assert list(unexplained(made, sky(Fault(kind, at=10.0, until=11.0)))), "a fault long healed is no excuse"


def test_a_fault_on_one_api_does_not_excuse_another() -> None:
    assert not list(unexplained(shown("stream", "cut"), sky(Fault("api_kill", target="api-0"))))
    assert list(unexplained(shown("stream", "cut", url=OTHER), sky(Fault("api_kill", target="api-0"))))


def test_a_slow_reader_may_come_to_a_word_late() -> None:
    late = Shown("stream", "server_shutdown", 160.0, URL)
    made = Account("slow", ASK, "job_1", shown=[replace(late, slow=True)])
    assert not list(unexplained(made, sky(Fault("api_stop"))))
    made.shown = [late]
    assert list(unexplained(made, sky(Fault("api_stop"))))


def test_a_redis_that_loses_writes_may_say_so_after_it_died() -> None:
    made = shown("stream", "history_lost")
    assert not list(unexplained(made, sky(Fault("redis_power"), lossy=True)))
    assert list(unexplained(made, sky(Fault("worker_kill"), lossy=True)))


def texts(made: Account, above: Sky, **changes: str) -> list[str]:
    """What `ending` says."""
    return [finding.text for finding in ending(made, Copy(record() | changes, log()), above)]


def client(kind: str) -> Account:
    """A client of this kind, there from second 95 to 110."""
    return Account(kind, ASK, "job_1", began=95.0, over=110.0, outcome="complete")


def test_a_lost_lease_needs_a_fault_that_takes_leases() -> None:
    assert texts(client("stream"), sky(Fault("worker_kill", jobs=("job_1",)))) == []
    assert len(texts(client("stream"), sky(Fault("worker_kill")))) == 1, "it ran elsewhere"
    assert texts(client("stream"), sky(Fault("worker_kill"), Fault("poison"))) == [], "who knows whom poison hits"
    assert len(texts(client("stream"), sky())) == 1
    assert len(texts(client("stream"), sky(Fault("worker_drain"), Fault("api_kill"), Fault("step_slow")))) == 1
    assert len(texts(client("stream"), sky(Fault("worker_kill", at=200.0, until=201.0)))) == 1


def test_an_outage_of_redis_may_cost_a_claim_and_no_answer() -> None:
    made = client("stream")
    assert len(texts(made, sky(Fault("redis_kill")))) == 1, "its attempt had made a token"
    early = [row for row in log() if row[1]["k"] != "delta"]
    assert not list(ending(made, Copy(record(), early), sky(Fault("redis_kill")))), "a claim whose answer was lost"
    assert list(ending(made, Copy(record(), early), sky(Fault("redis_kill", at=300.0, until=301.0))))


def test_in_the_calm_there_is_one_attempt() -> None:
    assert len(texts(client("stream"), sky(calm_until=120.0), losses="0")) == 1
    assert texts(client("stream"), sky(calm_until=120.0), losses="0", attempt="1") == []


@pytest.mark.parametrize(
    ("kind", "state", "code", "right"),
    [
        ("stream", "succeeded", "", True), ("stream", "failed", "poisoned", False), ("stored", "cancelled", "cancelled", False),
        ("disconnect", "cancelled", "cancelled", True), ("disconnect", "succeeded", "", False),
        ("cancel", "cancelled", "cancelled", True), ("cancel", "succeeded", "", True), ("cancel", "failed", "x", False),
        ("poison", "failed", "poisoned", True), ("poison", "failed", "engine_error", False), ("poison", "succeeded", "", False),
    ],
)  # fmt: skip
def test_each_client_has_its_own_ends(kind: str, state: str, code: str, right: bool) -> None:
    assert (texts(client(kind), sky(), state=state, code=code, losses="0") == []) is right


def test_poison_may_not_take_every_worker_with_it() -> None:
    end = {"state": "failed", "code": "poisoned"}
    assert texts(client("poison"), sky(), **end, losses=str(POISON_LOSSES)) == []
    assert len(texts(client("poison"), sky(), **end, losses=str(POISON_LOSSES + 1))) == 1


def test_an_accepted_cancel_holds() -> None:
    made = client("cancel")
    made.cancelled_at, made.cancelled_when = ("running", 2, 3), 102.0
    cancelled = {"state": "cancelled", "code": "cancelled", "losses": "0"}
    assert texts(made, sky(), **cancelled) == []
    assert len(texts(made, sky(), **(cancelled | {"attempt": "3"}))) == 1, "claimed again"
    assert len(texts(made, sky(), **(cancelled | {"tokens": "100"}))) == 1, "it ran on"
    assert texts(made, sky(Fault("kill_writer")), **(cancelled | {"tokens": "100"})) == [], "a worker cut off"
    made.cancelled_at = ("cancelled", 2, 4)
    assert len(texts(made, sky(), state="succeeded", losses="0")) == 1, "cancelled in line, and yet it ran"


def test_recovery_is_from_the_blow_to_the_next_token_of_a_later_attempt() -> None:
    made = account("events", ())
    made.segments[0].seen = [replace(one, at=100.0 + one.at) for one in made.segments[0].seen]
    kill = Fault("worker_kill", at=102.5, jobs=("job_1",))
    found = list(recoveries(made, sky(kill)))
    assert [(one.kind, one.seconds, one.alone) for one in found] == [("worker_kill", 1.5, True)]
    assert not next(recoveries(made, sky(kill, Fault("redis_kill", at=103.0, until=104.0)))).alone
    assert not next(recoveries(made, sky(kill, Fault("api_kill", at=101.0, until=101.5)))).alone, "just before"
    assert not next(recoveries(made, Sky([kill], single=frozenset({ASK.model})))).alone, "no other worker"
    assert not list(recoveries(made, sky(replace(kill, jobs=("job_2",))))), "not its job"
    assert not list(recoveries(account("events", (3,)), sky(replace(kill, at=2.5)))), "the client was away"
