"""The full batch before the first job; here on a CPU, in a GPU's place."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.sampling import Sampling
from tests.contract.engines import tiny_engine
from workers.engine import warmup
from workers.engine.base import Request
from workers.engine.paged import PagedBackend
from workers.engine.sampler import Sampler
from workers.engine.serial import SerialBackend

SEQUENCES, TOKENS = 6, 96


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of every forward after the check: its sequences, and its tokens."""
    found: list[tuple[int, int]] = []
    run = PagedBackend._run

    def counted(self: PagedBackend, futures: Any) -> Any:
        if isinstance(self.sampler, Sampler):  # the check has one of its own
            found.append((len(futures), sum(len(future.state.tokens_to_process) for future in futures)))
        return run(self, futures)

    monkeypatch.setattr(PagedBackend, "_run", counted)
    return found


@pytest.fixture
def warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine counts as one that needs it."""
    monkeypatch.setattr(warmup, "WARMED", {"cpu"})


@pytest.mark.usefixtures("warmed")
def test_all_sequences_and_all_tokens_of_a_forward_run_before_the_first_job(batches: list[tuple[int, int]]) -> None:
    engine = tiny_engine(max_num_seqs=SEQUENCES, max_batch_tokens=TOKENS)
    assert batches == [(SEQUENCES, TOKENS), (SEQUENCES, SEQUENCES)]
    assert (engine.load().tokens, engine._backend.running(), engine._backend.kv_used()) == (0, 0, 0.0)
    same = [at * 104729 % engine.profile.vocab_size for at in range(TOKENS // SEQUENCES)]
    engine.submit(Request("0", [*same, 1, 2], Sampling(max_tokens=1, seed=0)))
    engine.step()
    assert batches[-1] == (1, len(same) + 2)  # nothing of it is left to share


@pytest.mark.usefixtures("warmed")
def test_it_works_one_after_the_other_too() -> None:
    engine = tiny_engine("gemma2", max_num_seqs=SEQUENCES, max_batch_tokens=TOKENS)
    assert isinstance(engine._backend, SerialBackend)
    assert engine._backend.running() == 0


@pytest.mark.usefixtures("warmed")
def test_a_batch_that_does_not_fit_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = SerialBackend.forward

    def fail(self: SerialBackend) -> Any:
        if len(self._waiting) == SEQUENCES:  # not in the check, which has two
            raise MemoryError("made to fail")
        return forward(self)

    monkeypatch.setattr(SerialBackend, "forward", fail)
    with pytest.raises(ValueError, match=r"6 sequences with 16 tokens each do not fit .*: set a smaller max_num_seqs"):
        tiny_engine("gemma2", max_num_seqs=SEQUENCES, max_batch_tokens=TOKENS)


def test_a_cpu_needs_none(batches: list[tuple[int, int]]) -> None:
    engine = tiny_engine()
    assert batches == []
    engine.submit(Request("0", [5, 6, 7], Sampling(max_tokens=1, seed=0)))
    engine.step()
    assert batches == [(1, 3)]
