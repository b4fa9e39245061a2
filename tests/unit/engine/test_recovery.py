"""How the sequence to blame for failing steps is found, and when the engine gives up."""

from __future__ import annotations

import pytest

from workers.engine.base import EngineDead
from workers.engine.recovery import MAX_RECOVERIES, Recovery, is_out_of_memory

LIVE = ["a", "b", "c"]
FAULT = RuntimeError("made to fail")


def fail(recovery: Recovery, batch: list[str], error: Exception = FAULT) -> tuple[str, str, str] | None:
    recovery.step_failed(error, batch)
    return recovery.next(LIVE)


def test_a_first_failure_runs_the_same_batch_again() -> None:
    recovery = Recovery()
    assert fail(recovery, LIVE) is None
    assert recovery.alone is None


def test_failures_with_tokens_between_them_make_nobody_a_suspect() -> None:
    recovery = Recovery()
    for _ in range(3 * MAX_RECOVERIES):
        assert fail(recovery, LIVE) is None
        recovery.step_done(["a"])
    assert recovery.alone is None


def test_a_second_failure_makes_suspects_run_alone_until_each_has_a_token() -> None:
    recovery = Recovery()
    fail(recovery, LIVE)
    fail(recovery, ["a", "b", "gone"])
    assert recovery.alone == "a"
    recovery.step_done([])  # a part of its prompt
    assert recovery.alone == "a"
    recovery.step_done(["a"])
    assert recovery.alone == "b"
    recovery.forget("b")
    assert recovery.alone is None


def test_a_suspect_that_fails_twice_alone_is_to_blame() -> None:
    recovery = Recovery()
    fail(recovery, LIVE)
    fail(recovery, LIVE)
    assert fail(recovery, ["a"]) is None
    recovery.step_done(["a"])
    assert fail(recovery, ["b"], MemoryError("full")) is None  # what another did to its turn is not held against it
    assert recovery.alone == "b"
    assert fail(recovery, ["b"], MemoryError("full")) == ("b", "MemoryError: full", "out_of_memory")
    assert recovery.alone == "c"
    assert fail(recovery, ["c"]) is None
    assert fail(recovery, ["c"]) == ("c", "RuntimeError: made to fail", "engine_error")
    assert recovery.alone is None


def test_recovering_without_a_failure_blames_nobody() -> None:
    assert Recovery().next(LIVE) is None


def test_too_many_failures_without_a_token_end_the_engine() -> None:
    recovery = Recovery()
    for _ in range(MAX_RECOVERIES):
        fail(recovery, LIVE)
    with pytest.raises(EngineDead, match="made to fail"):
        fail(recovery, LIVE)


@pytest.mark.parametrize("name", ["AcceleratorError", "RuntimeError"])
def test_an_error_of_the_device_ends_the_engine_at_once(name: str) -> None:
    error = type(name, (RuntimeError,), {})("CUDA error: an illegal memory access was encountered")
    with pytest.raises(EngineDead):
        fail(Recovery(), LIVE, error)


def test_a_full_device_is_no_lost_device() -> None:
    error = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 1 GiB")
    assert fail(Recovery(), LIVE, error) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 8"), True),
        (RuntimeError("made to fail"), False),
    ],
)
def test_memory_that_ran_out_is_known_by_what_the_libraries_say(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
