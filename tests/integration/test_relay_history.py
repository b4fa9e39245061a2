"""A log that lost entries, went another way, or is gone: waited for, or an explicit error."""

from __future__ import annotations

import pytest
import redis

from api.lost import EventsExpired, HistoryLost, JobLost
from tasks.events import START
from tasks.keys import key
from tests.integration.relay_rig import read_count, running


async def test_lost_writes_are_waited_for_and_resent(redis_url: str) -> None:
    """The reader is ahead of the log; once the worker has sent its entries again, it goes on without a repetition."""
    async with running(redis_url, 3) as (relay, reader, _, attempt, client):
        lose(client, reader.job_id, keep=2, seq=2)
        reader.resync()
        assert await reader.next(0.1) == []
        attempt._seq = 2  # behind 2: the worker sends what follows again
        attempt._index = [1]
        attempt.say("1", "2")
        attempt.say("3")
        assert [str(at).partition("-")[2] for at, _ in await read_count(reader.next, 1)] == ["5"]
        relay.leave(reader, 0)


async def test_a_history_that_went_another_way_is_an_error(redis_url: str) -> None:
    """Never two texts in one stream."""
    async with running(redis_url, 3) as (relay, reader, worker, attempt, client):
        lose(client, reader.job_id, keep=2, seq=2)
        attempt.give_back()
        again = worker.claim()
        again.say("x", "y", "z")
        with pytest.raises(HistoryLost):
            await read_count(reader.next, 1)
        reader.rewind()
        items = await read_count(reader.next, 6)
        assert [at.seq for at, _ in items] == [1, 2, 3, 4, 5, 6]
        relay.leave(reader, 0)


async def test_a_job_without_record_is_lost(redis_url: str) -> None:
    async with running(redis_url, 1) as (relay, reader, _, _, client):
        client.delete(key("job", reader.job_id), key("log", reader.job_id))
        with pytest.raises(JobLost):
            await read_count(reader.next, 1)
        relay.leave(reader, 0)


async def test_an_ended_job_without_log_has_expired(redis_url: str) -> None:
    async with running(redis_url, 1) as (relay, reader, _, attempt, client):
        attempt.end()
        await read_count(reader.next, 1)
        client.delete(key("log", reader.job_id))
        late = relay.open(reader.job_id, START)
        assert await late.attach()
        with pytest.raises(EventsExpired):
            await late.next(0.1)
        relay.leave(late, 0)
        relay.leave(reader, 0)


def lose(client: redis.Redis, job_id: str, keep: int, seq: int) -> None:
    """What a Redis does that lost its last writes: the log and the record are those of a moment ago."""
    rows = client.xrange(key("log", job_id))
    for entry_id, _ in rows[keep:]:
        client.xdel(key("log", job_id), entry_id)
    copy = rows[:keep]
    client.delete(key("log", job_id))
    for entry_id, fields in copy:
        client.xadd(key("log", job_id), fields, id=entry_id)
    client.hset(key("job", job_id), "seq", seq)
