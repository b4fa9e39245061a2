"""What is sent, what is known to be there, and what is sent again."""

from __future__ import annotations

from tasks.events import Delta, End
from workers.outbox import Outbox


def filled(count: int, seq: int = 3) -> Outbox:
    outbox = Outbox("job_x", 9, seq)
    for index in range(count):
        outbox.append(Delta(0, index, (index,), "x"))
    return outbox


def test_seqs_follow_the_log() -> None:
    outbox = filled(5)
    write = outbox.write(2)
    assert write is not None
    assert (write.job, write.fence, write.first, len(write.entries), write.end) == ("job_x", 9, 4, 2, "")
    outbox.confirm(write)
    assert (outbox.logged, outbox.unsent()) == (5, 3)
    rest = outbox.write(100)
    assert rest is not None
    assert (rest.first, len(rest.entries)) == (6, 3)
    outbox.confirm(rest)
    assert outbox.write(100) is None


def test_the_end_is_announced_only_with_the_last_entry() -> None:
    outbox = filled(3)
    outbox.append(End("failed", 3, code="engine_error", message="boom"))
    part, whole = outbox.write(3), outbox.write(4)
    assert part is not None
    assert whole is not None
    assert part.end == ""
    assert (whole.end, whole.code, whole.message) == ("failed", "engine_error", "boom")


def test_a_log_that_lost_entries_gets_them_again() -> None:
    outbox = filled(5)
    write = outbox.write(5)
    assert write is not None
    outbox.confirm(write)
    assert outbox.rewind(6)
    again = outbox.write(5)
    assert again is not None
    assert again.first == 7
    assert list(again.entries) == list(write.entries[3:])
    assert outbox.rewind(3)
    assert not outbox.rewind(2), "that is before this attempt"
    outbox.confirm(again)
    assert outbox.logged == 8


def test_a_late_rewind_never_skips_forward() -> None:
    outbox = filled(5)
    assert outbox.rewind(7)
    assert outbox.logged == 3


def test_progress_is_a_new_token_in_the_log() -> None:
    outbox = Outbox("job_x", 9, 3)
    outbox.append(Delta(0, 7, (), "held back"))
    outbox.append(Delta(0, 7, (1,), "x"))
    for expected in (False, True):
        write = outbox.write(1)
        assert write is not None
        outbox.confirm(write)
        assert outbox.progressed is expected
