"""The order in line: bands, fairness between tenants inside one, ageing. All on the real scripts, with figures."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from tasks.keys import key
from tasks.ledger import Claim
from tasks.sampling import Sampling
from tasks.tenants import Tenant
from tests.integration.protocol_rig import MODEL, Rig, make_spec


def tenant(name: str, weight: float = 1.0) -> Tenant:
    return Tenant(name=name, weight=weight)


def costing(tokens: int) -> dict[str, object]:
    """A job of that expected cost: two tokens of prompt, the others of answer."""
    return {"sampling": Sampling(max_tokens=tokens - 2, seed=1)}


def submit_many(rig: Rig, by: Tenant, count: int, tokens: int = 34) -> None:
    """At once, as a burst does."""

    async def submit() -> None:
        specs = (make_spec(tenant=by.name, **costing(tokens)) for _ in range(count))
        while some := list(itertools.islice(specs, 200)):
            await asyncio.gather(*(rig.store.submit(spec, limit=10**6, tenant=by) for spec in some))

    rig.wait(submit())


def served(rig: Rig, claims: int, end: bool = True) -> list[str]:
    """The tenants of the jobs that were claimed, in order; each ends at once, with as many tokens as were expected."""
    names = []
    for _ in range(claims):
        attempt = rig.attempt()
        names.append(attempt.claim.spec.tenant)
        if end:
            attempt.make(attempt.claim.spec.sampling.max_tokens, end="succeeded").send()
    return names


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 if all are equal, 1/n if one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def test_ten_thousand_jobs_of_one_tenant_delay_another_by_no_job_in_line(rig: Rig) -> None:
    another_comes_into_a_flood(rig, 10_000)


def another_comes_into_a_flood(rig: Rig, count: int) -> None:
    submit_many(rig, tenant("flood"), count)
    served(rig, 5)
    late = rig.submit(by=tenant("other"), limit=10**6)
    assert late.position == 1
    assert rig.claim().spec.id == late.id
    again = [rig.submit(by=tenant("other"), limit=10**6) for _ in range(4)]
    assert [one.position for one in again] == [1, 2, 3, 5]  # in turns: four jobs of ten tokens for one of 34


def test_tenants_that_always_wait_get_equal_parts_whatever_they_ask_for(rig: Rig) -> None:
    sizes = {"many-small": (400, 12), "few-large": (60, 98), "middle": (120, 34), "late": (120, 34)}
    for name, (count, tokens) in sizes.items():
        submit_many(rig, tenant(name), count, tokens)
    tokens_of = {name: size for name, (_, size) in sizes.items()}
    counts = Counter(served(rig, 250))
    parts = [counts[name] * tokens_of[name] for name in sizes]
    assert jain(parts) > 0.999
    assert max(parts) - min(parts) <= 2 * max(tokens_of.values())


def test_a_weight_is_a_multiple_of_the_lanes(rig: Rig) -> None:
    for name, weight in (("one", 1.0), ("three", 3.0), ("half", 0.5)):
        submit_many(rig, tenant(name, weight), 300)
    counts = Counter(served(rig, 270))
    assert (counts["half"], counts["one"], counts["three"]) == pytest.approx((30, 60, 180), abs=2)


def test_whoever_was_alone_for_long_is_not_punished_for_it(rig: Rig) -> None:
    alone, new = tenant("alone"), tenant("new")
    submit_many(rig, alone, 50)
    served(rig, 50)
    submit_many(rig, alone, 20)
    submit_many(rig, new, 20)
    names = served(rig, 20)
    assert abs(names.count("alone") - names.count("new")) <= 2


def test_what_was_not_used_is_given_back(rig: Rig) -> None:
    short, honest = tenant("short"), tenant("honest")
    rig.redis.hset(key("pace", MODEL), "answer 1", 90)  # answers were long lately, so everybody is expected to be long
    for by in (short, honest):
        for _ in range(12):
            rig.new(by=by, limit=1000, **costing(92))
    for _ in range(12):  # both get the same lanes, and one of them ends after a tenth of it
        attempt = rig.attempt()
        attempt.make(9 if attempt.claim.spec.tenant == "short" else 90, end="succeeded").send()
    fair = rig.redis.hgetall(key("fair", MODEL))
    owed = {name: int(fair[f"1 {name}"]) for name in ("short", "honest")}
    assert owed["honest"] - owed["short"] == pytest.approx(16 * 6 * 81, rel=0.01)
    rig.wait(rig.store.cancel(rig.new(by=honest, limit=1000, **costing(92))))
    assert int(rig.redis.hget(key("fair", MODEL), "1 honest") or 0) == owed["honest"]  # one that never ran cost nothing


def test_idle_tenants_are_served_in_the_order_of_their_arrival(rig: Rig) -> None:
    jobs = [rig.new(by=tenant(f"t{number}")) for number in range(40)]
    assert rig.line() == jobs


def test_whoever_was_alone_with_long_answers_is_not_punished_either(rig: Rig) -> None:
    alone, new = tenant("alone"), tenant("new")
    submit_many(rig, alone, 8, tokens=2002)
    held = [rig.attempt() for _ in range(8)]
    for attempt in held:  # many at a time, and each eight times as long as was expected
        attempt.make(2000, end="succeeded").send()
    submit_many(rig, new, 30)
    rig.redis.hset(key("pace", MODEL), "answer 1 alone", 32)
    assert rig.submit(by=alone, limit=100, **costing(34)).position <= 3


def test_equal_parts_are_parts_of_tokens_even_if_nobody_says_how_long_answers_will_be(rig: Rig) -> None:
    long, short = tenant("long"), tenant("short")
    real = {"long": 300, "short": 30}
    for _ in range(3):  # what they had before
        for by in (long, short):
            rig.new(by=by, limit=100)
            rig.attempt().make(real[by.name], end="succeeded").send()
    for by in (long, short):
        submit_many(rig, by, 120, tokens=4000)
    counts = Counter(served_as(rig, 110, real))
    parts = [counts[name] * (real[name] + 2) for name in real]
    assert jain(parts) > 0.99


def served_as(rig: Rig, claims: int, real: dict[str, int]) -> list[str]:
    names = []
    for _ in range(claims):
        attempt = rig.attempt()
        names.append(attempt.claim.spec.tenant)
        attempt.make(real[names[-1]], end="succeeded").send()
    return names


def test_a_band_goes_before_the_next_and_is_fair_in_itself(rig: Rig) -> None:
    batch = rig.new(priority="batch")
    normal = [rig.new() for _ in range(2)]
    urgent = [rig.new(priority="interactive", by=tenant(name)) for name in ("a", "a", "b")]
    assert rig.line() == [urgent[0], urgent[2], urgent[1], *normal, batch]


def age(rig: Rig, job: str) -> None:
    rig.redis.hincrby(key("job", job), "created", -61_000)


@pytest.mark.parametrize("band", ["normal", "batch"])
def test_what_has_waited_long_gets_one_lane_of_ten_however_much_is_more_urgent(rig: Rig, band: str) -> None:
    old = [rig.new(priority=band) for _ in range(3)]
    for job in old:
        age(rig, job)
    for _ in range(40):
        rig.new(priority="interactive")
    taken = [rig.claim().spec.id for _ in range(30)]
    assert [job for job in taken if job in old] == old
    assert [number for number, job in enumerate(taken, 1) if job in old] == [10, 20, 30]


def test_a_worker_that_has_enough_of_them_takes_none_for_its_age(rig: Rig) -> None:
    age(rig, rig.new(priority="batch"))
    for _ in range(12):
        rig.new(priority="interactive")
    claims = [rig.ledger.claim(MODEL, "w1", aged=False) for _ in range(12)]
    assert all(isinstance(claim, Claim) and claim.spec.priority == "interactive" for claim in claims)


def test_what_has_not_waited_long_does_not_pass_what_is_more_urgent(rig: Rig) -> None:
    young = rig.new(priority="batch")
    for _ in range(30):
        rig.new(priority="interactive")
    assert young not in [rig.claim().spec.id for _ in range(30)]
    assert rig.claim().spec.id == young


def test_the_wait_of_ageing_is_a_setting(rigs: Callable[..., Rig]) -> None:
    rig = rigs(ageing_s=3600)
    age(rig, rig.new(priority="batch"))
    for _ in range(10):
        rig.new(priority="interactive")
    assert {rig.claim().spec.priority for _ in range(10)} == {"interactive"}


def test_places_are_told_for_many_jobs_at_once(rig: Rig) -> None:
    jobs = [rig.new() for _ in range(5)]
    running = rig.claim().spec.id
    assert rig.wait(rig.store.positions([*reversed(jobs), "job_missing"])) == [4, 3, 2, 1, None, None]
    assert running == jobs[0]
    assert rig.wait(rig.store.positions([])) == []
