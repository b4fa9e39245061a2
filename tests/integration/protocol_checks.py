"""The invariants of the job protocol, checked on a live Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tasks.events import EntryId
from tasks.jobs import BAND_SPAN, JobState
from tasks.keys import key, single
from tasks.tenants import Tenant
from tests.integration.protocol_rig import MODEL, Heard, Rig

#: A tenant that may run one job at a time.
NARROW = Tenant(name="narrow", max_running=1)

Log = list[tuple[EntryId, dict[str, Any]]]


class Witness:
    """Looks after every step, and remembers what it saw."""

    def __init__(self, rig: Rig, apis: Sequence[str]) -> None:
        self._rig = rig
        self._apis = apis
        self._ear = rig.listen(*apis)
        self._logs: dict[str, Log] = {}
        self._watched: dict[str, set[str]] = {}
        self._contents: dict[tuple[str, EntryId], dict[str, Any]] = {}  # over all restarts

    def forget(self, jobs: Sequence[str]) -> None:
        """Redis lost its last writes: what it has now is what comes before the next step."""
        self._logs = {job: self._rig.log(job) for job in jobs}
        self._watched = self._watchers(jobs)

    def look(self, jobs: Sequence[str]) -> list[Heard]:
        """Check everything; what was published since the last look."""
        parked = self._rig.parked(NARROW.name)
        waiting, leased = {*self._rig.line(), *parked}, self._rig.leased()
        assert len(waiting) == len(self._rig.line()) + len(parked), "a job stands twice"
        logs = {job: self._rig.log(job) for job in jobs}
        for job, log in logs.items():
            record = self._rig.record(job)
            if not record:
                assert not log, "a log without a record"
                continue
            check_log(log, record)
            assert (record["state"] == "queued") == (job in waiting)
            assert (record["state"] == "running") == (job in leased)
            for name, entry in log:
                assert self._contents.setdefault((job, name), entry) == entry, "one id, two contents"
        self._check_line({job: self._rig.record(job) for job in jobs}, set(self._rig.line()), bool(parked))
        return self._published(logs)

    def _check_line(self, records: dict[str, dict[str, str]], standing: set[str], parked: bool) -> None:
        """What is counted of the line is what waits, and a tenant's share is what it runs."""
        redis, queued = self._rig.redis, [one for one in records.values() if one.get("state") == "queued"]
        counted = dict(redis.hgetall(key("length", MODEL)))
        names = Counter(f"jobs {record['tenant']}" for record in queued)
        for job, record in records.items():
            if job in standing and record.get("state") == "queued":
                band = int(record["score"]) // BAND_SPAN
                names[f"tokens {band}"] += int(record["cost"])
                names[f"answers {band}"] += int(record["cost"]) - int(record["prompt"])
        assert counted == {name: str(number) for name, number in (names + Counter(jobs=len(queued))).items()}
        mine = [
            one["state"] for job, one in records.items() if one and one["tenant"] == NARROW.name and job not in standing
        ]
        running = mine.count("running")
        assert redis.scard(key("active", f"{MODEL}:{NARROW.name}")) == running <= NARROW.max_running
        assert bool(redis.exists(single("parks"))) == parked
        stands = any(one["tenant"] == NARROW.name for job, one in records.items() if one and job in standing)
        assert running or stands or not parked, "parked, and nothing will bring it back"

    def _watchers(self, jobs: Sequence[str]) -> dict[str, set[str]]:
        return {job: set(map(str, self._rig.redis.smembers(key("watch", job)))) for job in jobs}

    def _published(self, logs: dict[str, Log]) -> list[Heard]:
        """What was accepted since the last look was published to all who watched, and nothing else was."""
        heard, watched = self._ear.heard(), self._watchers(list(logs))
        for job, log in logs.items():
            old = self._logs.get(job, [])
            new, before = log[len(old) :], self._watched.get(job, set())
            assert log[: len(old)] == old, "the log is not append-only"
            for api in self._apis:
                got = [(one.id, one.entry) for one in heard if (one.job, one.api) == (job, api)]
                assert got in ([], new), "published, but not what was accepted"
                assert not got or api in before, "published to somebody who does not watch"
                assert got == new or api not in before & watched[job], "accepted and not published"
        self._logs, self._watched = logs, watched
        return heard


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
