"""Random histories of the job protocol on a real Redis, with the invariants checked after every step.

Clients, API processes, three workers with zombies, reapers and faults take turns. HYPOTHESIS_PROFILE=thorough runs many
more and longer histories, with fresh seeds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tasks.errors import Conflict, QueueFull
from tasks.events import EntryId
from tasks.jobs import JobState
from tasks.keys import key, queue_of, single
from tasks.ledger import Claim, Draining
from tests.integration.protocol_reader import Reader
from tests.integration.protocol_rig import MODEL, Attempt, Rig, Snapshot

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
APIS, ROLLBACKS, LIMIT = ("a1", "a2"), 2, 6
T = TypeVar("T")
Log = list[tuple[EntryId, dict[str, Any]]]
pick = st.integers(0, 20)


def at(items: Sequence[T], number: int) -> T:
    """One of the items, the newest first, so that a small number means the most likely one."""
    return items[-1 - number % len(items)]


def needs(name: str) -> Any:
    """The rule needs one of these."""
    return precondition(lambda machine: bool(getattr(machine, name)))


class Protocol(RuleBasedStateMachine):
    """The world and what it must remember to judge it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        with redis.Redis.from_url(url) as client:
            client.flushall()
        self.rig = Rig(url)
        self.ear = self.rig.listen(*APIS)
        self.jobs: list[str] = []
        self.attempts: list[Attempt] = []  # zombies stay in it
        self.readers: list[Reader] = []
        self.cancelled: set[str] = set()  # cancels that were accepted
        self.logs: dict[str, Log] = {}
        self.watched: dict[str, set[str]] = {}
        self.contents: dict[tuple[str, EntryId], dict[str, Any]] = {}  # over all restarts
        self.disk: tuple[Snapshot, set[str]] | None = None
        self.rollbacks = 0

    # clients and API processes

    @rule(api=st.sampled_from(("", *APIS)), store=st.booleans(), idem=st.sampled_from(("", "", "k1", "k2")), band=pick)
    def submit(self, api: str, store: bool, idem: str, band: int) -> None:
        held = (self.rig.redis.get(key("idem", f"default:{idem}")) or "") if idem else ""
        old = str(held).partition(" ")[0]
        body, priority = at(("h1", "h1", "h2"), band), at(("batch", "normal", "interactive"), band)
        try:
            made = self.rig.submit(limit=LIMIT, api=api, store=store, idem=idem, body=body, priority=priority)
        except Conflict:
            assert str(held).partition(" ")[2] != body
        except QueueFull:
            assert len(self.rig.line()) >= LIMIT
        else:
            assert made.existing == bool(old and self.rig.redis.exists(key("job", old)))
            if made.existing:
                assert held == f"{made.id} {body}"
            else:
                self.jobs.append(made.id)
                if api:
                    self.readers.append(Reader(self.rig, made.id, api))

    @needs("jobs")
    @rule(job=pick, api=st.sampled_from(APIS), like=st.none() | pick)
    def read(self, job: int, api: str, like: int | None) -> None:
        name = at(self.jobs, job)
        others = [reader for reader in self.readers if reader.job == name]
        reader = Reader(self.rig, name, api)
        if like is not None and others:
            reader.resume(at(others, like))
        self.readers.append(reader)
        reader.poll()

    @needs("readers")
    @rule(reader=pick)
    def poll(self, reader: int) -> None:
        at(self.readers, reader).poll()

    @needs("readers")
    @rule(reader=pick, grace=st.sampled_from((0, 30)))
    def leave(self, reader: int, grace: int) -> None:
        gone = at(self.readers, reader)
        self.readers.remove(gone)
        if not any((other.job, other.api) == (gone.job, gone.api) for other in self.readers):
            self.rig.wait(self.rig.store.detach(gone.job, gone.api, grace))

    @needs("jobs")
    @rule(job=pick)
    def cancel(self, job: int) -> None:
        name = at(self.jobs, job)
        if self.rig.wait(self.rig.store.cancel(name)) in ("cancelled", "requested"):
            self.cancelled.add(name)

    @rule(api=st.sampled_from(APIS))
    def api_dies(self, api: str) -> None:
        self.readers = [reader for reader in self.readers if reader.api != api]
        if self.rig.redis.zscore(single("apis"), api) is not None:
            self.rig.pass_by("apis", api)

    # workers

    @rule(worker=st.sampled_from(("w1", "w2", "w3")))
    def claim(self, worker: str) -> None:
        ticket = self.rig.redis.rpop(queue_of(MODEL))
        if ticket is None:
            return
        match self.rig.ledger.claim(MODEL, worker):
            case Draining():
                self.rig.redis.rpush(queue_of(MODEL), str(ticket))
            case Claim() as claim:
                assert claim.spec.id not in self.cancelled, "a job whose cancel was accepted was claimed"
                self.attempts.append(Attempt(self.rig, claim))

    @needs("attempts")
    @rule(number=pick, tokens=st.integers(0, 3), end=st.sampled_from(("", "", "", "succeeded", "failed", "cancelled")))
    def work(self, number: int, tokens: int, end: str) -> None:
        attempt = at(self.attempts, number)
        if not attempt.end:
            attempt.make(tokens, end)
        self.step(attempt, attempt.sent)

    @needs("attempts")
    @rule(number=pick, skip=pick)
    def work_again_or_ahead(self, number: int, skip: int) -> None:
        attempt = at(self.attempts, number)
        self.step(attempt, skip % (len(attempt.tail) + 1))

    def step(self, attempt: Attempt, skip: int) -> None:
        """One call of step, judged by the record before it."""
        write, before, log = attempt.write(skip), self.rig.record(attempt.job), self.rig.log(attempt.job)
        if write.end and not write.entries:
            return  # no worker sends an end without its entry
        answer = attempt.ask(write)
        if before.get("state") != "running" or int(before["fence"]) != attempt.fence:
            assert answer.verdict == "fenced" or (answer.verdict == "ok" and log[-1][0].fence == attempt.fence)
            assert self.rig.log(attempt.job) == log
        elif write.first > int(before["seq"]) + 1:
            assert (answer.verdict, answer.seq) == ("behind", int(before["seq"]))
            attempt.sent = answer.seq - attempt.claim.seq
        else:
            assert answer.verdict == ("cancel" if before["cancel"] == "1" and not write.end else "ok")
            attempt.sent = len(attempt.tail)
            assert len(self.rig.log(attempt.job)) == attempt.seq

    @needs("attempts")
    @rule(number=pick)
    def renew(self, number: int) -> None:
        attempt = at(self.attempts, number)
        lease = self.rig.redis.zscore(single("leases"), attempt.job)
        record = self.rig.record(attempt.job)
        mine = record.get("state") == "running" and record["fence"] == str(attempt.fence)
        assert (attempt.renew().verdict != "lost") == mine
        assert mine or self.rig.redis.zscore(single("leases"), attempt.job) == lease

    @needs("attempts")
    @rule(number=pick, kept=st.booleans())
    def release(self, number: int, kept: bool) -> None:
        attempt = at(self.attempts, number)
        attempt.release()
        if not kept:
            self.attempts.remove(attempt)

    @needs("attempts")
    @rule(number=pick)
    def worker_dies(self, number: int) -> None:
        self.attempts.remove(at(self.attempts, number))

    @rule()
    def drain(self) -> None:
        self.rig.ledger.drain("w3")

    # time and faults

    @rule(index=st.sampled_from(("leases", "leases", "orphans")), number=pick)
    def time_passes(self, index: str, number: int) -> None:
        if members := [str(member) for member in self.rig.redis.zrange(single(index), 0, -1)]:
            self.rig.pass_by(index, at(members, number))

    @rule(api=st.sampled_from(("", *APIS)), after_outage=st.sampled_from((False, False, False, True)))
    def reap(self, api: str, after_outage: bool) -> None:
        self.rig.reap(api, after_outage=after_outage)
        assert after_outage or self.rig.tickets() >= len(self.rig.line()), "a job waits without a ticket"

    @rule(more=st.booleans())
    def tickets(self, more: bool) -> None:
        if more:
            self.rig.redis.lpush(queue_of(MODEL), "a duplicate")
        else:
            self.rig.redis.rpop(queue_of(MODEL))

    @rule()
    def save(self) -> None:
        self.disk = self.rig.copy(), set(self.cancelled)

    @precondition(lambda machine: machine.disk is not None and machine.rollbacks < ROLLBACKS)
    @rule()
    def lose_writes(self) -> None:
        assert self.disk is not None
        self.rollbacks += 1
        self.rig.roll_back(self.disk[0])
        self.cancelled = set(self.disk[1])
        self.logs = {job: self.rig.log(job) for job in self.jobs}

    # what always holds

    @invariant()
    def nothing_is_broken(self) -> None:
        waiting, leased = set(self.rig.line()), self.rig.leased()
        logs = {job: self.rig.log(job) for job in self.jobs}
        records = {job: self.rig.record(job) for job in self.jobs}
        for job, record in records.items():
            if not record:
                assert not logs[job], "a log without a record"
                continue
            check_log(logs[job], record)
            assert (record["state"] == "queued") == (job in waiting)
            assert (record["state"] == "running") == (job in leased)
            for name, entry in logs[job]:
                assert self.contents.setdefault((job, name), entry) == entry, "one id, two contents"
        self.published(logs)

    def published(self, logs: dict[str, Log]) -> None:
        """What was accepted since the last look was published to all who watched, and nothing else was."""
        heard = self.ear.heard()
        watched = {job: set(map(str, self.rig.redis.smembers(key("watch", job)))) for job in self.jobs}
        for job, log in logs.items():
            old = self.logs.get(job, [])
            assert log[: len(old)] == old, "the log is not append-only"
            before = self.watched.get(job, set())
            for api in APIS:
                got = [(one.id, one.entry) for one in heard if (one.job, one.api) == (job, api)]
                assert got in ([], log[len(old) :])
                assert not got or api in before, "published to somebody who does not watch"
                assert got == log[len(old) :] or api not in before & watched[job], "accepted and not published"
        self.logs, self.watched = logs, watched
        for one in heard:
            for reader in self.readers:
                if (reader.job, reader.api) == (one.job, one.api):
                    reader.hear(one)

    @invariant()
    def readers_see_a_prefix(self) -> None:
        for reader in self.readers:
            assert [name.seq for name, _ in reader.seen] == list(range(1, len(reader.seen) + 1))
            log = self.rig.log(reader.job)
            if reader.seen and reader.last in [name for name, _ in log]:
                assert reader.seen == log[: len(reader.seen)]

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            self.rig.close()

    def finish(self) -> None:
        """Whatever happened, one live worker ends every job, every reader learns of it, and nothing stays for ever."""
        for job in self.jobs:
            if job in self.rig.leased():
                self.rig.pass_by("leases", job)
        self.rig.reap()
        self.nothing_is_broken()
        while self.rig.redis.rpop(queue_of(MODEL)):
            if isinstance(claim := self.rig.ledger.claim(MODEL, "w9"), Claim):
                assert Attempt(self.rig, claim).make(1, "succeeded").send() == "ok"
        self.nothing_is_broken()
        for job in self.jobs:
            assert self.rig.record(job).get("state") not in ("queued", "running")
        for reader in self.readers:
            reader.poll()
            assert reader.over
        self.nothing_is_broken()
        assert not {name for name in self.rig.endless() if not name.startswith(key("watched", ""))}


def check_log(log: Log, record: dict[str, str]) -> None:
    """One job's log against its record."""
    names = [name for name, _ in log]
    assert [name.seq for name in names] == list(range(1, int(record["seq"]) + 1)), "seq is not dense"
    assert [name.fence for name in names] == sorted(name.fence for name in names)
    ends = [number for number, (_, entry) in enumerate(log) if entry["k"] == "end"]
    assert ends == ([len(log) - 1] if JobState(record["state"]).terminal else []), "the end is not the last entry"
    indexes = [entry["i"] for _, entry in log if entry["k"] == "delta"]
    assert indexes == list(range(len(indexes))), "a token is missing or repeated"
    assert int(record["tokens"]) == len(indexes)
    if record["state"] == "running" or ends:
        assert names[-1].fence == int(record["fence"])


def test_the_protocol_holds_in_random_histories(redis_server: str) -> None:
    profile = settings(
        max_examples=1000 if THOROUGH else 40,
        stateful_step_count=80 if THOROUGH else 50,
        derandomize=not THOROUGH,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(lambda: Protocol(redis_server), settings=profile)
