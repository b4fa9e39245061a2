"""Random histories of the job protocol on a real Redis, with the invariants checked after every step.

Clients, API processes, three workers with zombies, reapers and faults take turns; `protocol_turns` says how often.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import cast

import redis
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from tasks.errors import Conflict, QueueFull
from tasks.keys import key, queue_of, single
from tasks.ledger import Claim, Draining
from tasks.tenants import EVERYBODY
from tests.integration.protocol_attempt import Attempt
from tests.integration.protocol_checks import NARROW, Witness
from tests.integration.protocol_reader import Reader
from tests.integration.protocol_rig import MODEL, Rig, Snapshot
from tests.integration.protocol_turns import APIS, PROFILE, WORKERS, Turn, at, turns, ways

JOBS, ROLLBACKS, LIMIT = 4, 2, 3


class Protocol(RuleBasedStateMachine):
    """The world and what it must remember. There is one rule: Hypothesis leaves whole rules out of most histories."""

    def __init__(self, url: str) -> None:
        super().__init__()
        with redis.Redis.from_url(url) as client:
            client.flushall()
        self.rig = Rig(url)
        self.witness = Witness(self.rig, APIS)
        self.jobs: list[str] = []
        self.attempts: list[Attempt] = []  # zombies stay in it
        self.readers: list[Reader] = []
        self.cancelled: set[str] = set()  # cancels that were accepted
        self.disk: tuple[Snapshot, set[str]] | None = None
        self.rollbacks = 0

    @rule(what=ways, turn=turns)
    def turn(self, what: str, turn: Turn) -> None:
        needs: dict[str, Sized] = dict.fromkeys(("work", "again", "renew", "release", "die"), self.attempts)
        needs |= dict.fromkeys(("resume", "poll", "leave"), self.readers) | dict.fromkeys(
            ("cancel", "read", "preempt"), self.jobs
        )
        if what in needs and not needs[what]:
            what = "claim"  # what cannot be done yet gives way to what leads there
        if what == "claim" and not self.rig.line():
            what = "submit"
        if what != "submit" or len(self.jobs) < JOBS:
            getattr(self, what)(turn)

    # clients and API processes

    def submit(self, turn: Turn) -> None:
        api, idem = (turn.api if turn.number % 3 else ""), at(("", "k1", "k2", ""), turn.number)
        by = NARROW if turn.number % 2 else EVERYBODY
        held = str((self.rig.redis.get(key("idem", f"{by.name}:{idem}")) or "") if idem else "")
        old, body = held.partition(" ")[0], at(("h1", "h1", "h2"), turn.tokens)
        priority = at(("batch", "normal", "interactive"), turn.tokens)
        try:
            made = self.rig.submit(
                limit=LIMIT, by=by, api=api, store=turn.flag, idem=idem, body=body, priority=priority
            )
        except Conflict:
            assert held.partition(" ")[2] != body
        except QueueFull:
            assert len(self.rig.line()) >= LIMIT
        else:
            assert made.existing == bool(old and self.rig.redis.exists(key("job", old)))
            if made.existing:
                assert held == f"{made.id} {body}"
            else:
                self.jobs.append(made.id)
                self.readers += [Reader(self.rig, made.id, api)] if api else []

    def read(self, turn: Turn) -> None:
        self.readers.append(Reader(self.rig, at(self.jobs, turn.number), turn.api))
        self.readers[-1].poll()

    def resume(self, turn: Turn) -> None:
        old = at(self.readers, turn.number)
        self.readers.append(Reader(self.rig, old.job, turn.api).resume(old))
        self.readers[-1].poll()

    def poll(self, turn: Turn) -> None:
        at(self.readers, turn.number).poll()

    def leave(self, turn: Turn) -> None:
        gone = at(self.readers, turn.number)
        self.readers.remove(gone)
        if not any((other.job, other.api) == (gone.job, gone.api) for other in self.readers):
            self.rig.wait(self.rig.store.detach(gone.job, gone.api, 30 if turn.flag else 0))

    def cancel(self, turn: Turn) -> None:
        job = at(self.jobs, turn.number)
        if self.rig.wait(self.rig.store.cancel(job)) in ("cancelled", "requested"):
            self.cancelled.add(job)

    # workers

    def claim(self, turn: Turn) -> None:
        if not (ticket := self.rig.redis.rpop(queue_of(MODEL))):
            return
        match self.rig.ledger.claim(MODEL, at(WORKERS, turn.number)):
            case Draining():
                self.rig.redis.rpush(queue_of(MODEL), str(ticket))
            case Claim() as claim:
                assert claim.spec.id not in self.cancelled, "a job whose cancel was accepted was claimed"
                self.attempts.append(Attempt(self.rig, claim))

    def owns(self, attempt: Attempt) -> bool:
        """The record says that this attempt may write."""
        record = self.rig.record(attempt.job)
        return record.get("state") == "running" and int(record["fence"]) == attempt.fence

    def attempt(self, turn: Turn) -> Attempt:
        """Mostly one that owns its job, sometimes a zombie."""
        live = [one for one in self.attempts if self.owns(one)]
        zombies = [one for one in self.attempts if one not in live]
        return at(zombies if zombies and (not live or turn.number % 4 == 3) else live, turn.tokens)

    def work(self, turn: Turn) -> None:
        attempt = self.attempt(turn)
        if not attempt.end:
            attempt.make(turn.tokens, turn.end)
        if turn.number != 11:  # sometimes the call does not reach Redis, and the next one is longer
            self.step(attempt, attempt.sent)

    def again(self, turn: Turn) -> None:
        attempt = self.attempt(turn)
        self.step(attempt, turn.tokens % (len(attempt.tail) + 1))

    def step(self, attempt: Attempt, skip: int) -> None:
        """One call of step, judged by the record before it."""
        write, before, log = attempt.write(skip), self.rig.record(attempt.job), self.rig.log(attempt.job)
        if write.end and not write.entries:
            return  # no worker sends an end without its entry
        owned, answer = self.owns(attempt), attempt.ask(write)
        if not owned:
            assert answer.verdict == "fenced" or (answer.verdict == "ok" and log[-1][0].fence == attempt.fence)
            assert self.rig.log(attempt.job) == log
        elif write.first > int(before["seq"]) + 1:
            assert (answer.verdict, answer.seq) == ("behind", int(before["seq"]))
            attempt.sent = answer.seq - attempt.claim.seq
        else:
            assert answer.verdict == ("cancel" if before["cancel"] == "1" and not write.end else "ok")
            attempt.sent = len(attempt.tail)
            assert len(self.rig.log(attempt.job)) == attempt.seq

    def renew(self, turn: Turn) -> None:
        attempt = self.attempt(turn)
        lease, mine = self.rig.redis.zscore(single("leases"), attempt.job), self.owns(attempt)
        assert (attempt.renew().verdict != "lost") == mine
        assert mine or self.rig.redis.zscore(single("leases"), attempt.job) == lease

    def release(self, turn: Turn) -> None:
        attempt = self.attempt(turn)
        attempt.release()
        if turn.flag:
            self.attempts.remove(attempt)

    def preempt(self, turn: Turn) -> None:
        job = at(self.jobs, turn.number)
        before = self.rig.record(job)
        answer = self.rig.wait(self.rig.store.preempt(job))
        if before.get("state") == "running":
            assert answer == ("ended cancelled" if before["cancel"] == "1" else "preempted")
        else:
            assert answer == (f"already {before['state']}" if before else "gone")

    def die(self, turn: Turn) -> None:
        self.attempts.remove(at(self.attempts, turn.number))

    # time and faults

    def due(self, turn: Turn) -> None:
        """A lease or a grace ends or an API process dies, and a reaper comes by."""
        index = at(("apis", "orphans", "leases", "leases"), turn.tokens)
        if members := [str(member) for member in self.rig.redis.zrange(single(index), 0, -1)]:
            member = at(members, turn.number)
            self.rig.pass_by(index, member)
            self.readers = [reader for reader in self.readers if reader.api != member]
            self.rig.reap()

    def reap(self, turn: Turn) -> None:
        self.rig.reap(turn.api if turn.flag else "")
        assert self.rig.tickets() >= len(self.rig.line()), "a job waits without a ticket"

    def outage(self, turn: Turn) -> None:
        self.rig.reap(turn.api if turn.flag else "", after_outage=True)

    def tickets(self, turn: Turn) -> None:
        if turn.flag:
            self.rig.redis.lpush(queue_of(MODEL), "a duplicate")
        else:
            self.rig.redis.rpop(queue_of(MODEL))

    def drain(self, turn: Turn) -> None:
        self.rig.ledger.drain(WORKERS[-1])

    def save(self, turn: Turn) -> None:
        self.disk = self.rig.copy(), set(self.cancelled)

    def lose_writes(self, turn: Turn) -> None:
        if self.disk and self.rollbacks < ROLLBACKS:
            self.rollbacks += 1
            self.rig.roll_back(self.disk[0])
            self.cancelled = set(self.disk[1])
            self.witness.forget(self.jobs)

    # what always holds

    @invariant()
    def nothing_is_broken(self) -> None:
        for heard in self.witness.look(self.jobs):
            for reader in self.readers:
                if (reader.job, reader.api) == (heard.job, heard.api):
                    reader.hear(heard)
        for reader in self.readers:
            reader.check()

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            self.rig.close()

    def finish(self) -> None:
        """Whatever happened, one live worker ends every job, every reader learns of it, and nothing stays for ever."""
        for job in self.rig.leased():
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


def test_the_protocol_holds_in_random_histories(redis_server: str) -> None:
    run_machine(cast("type[RuleBasedStateMachine]", lambda: Protocol(redis_server)), settings=PROFILE)
