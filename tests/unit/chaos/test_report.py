"""The report is red for every reason there is, and its figures are right."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from chaos.audit import COLUMNS, Column, Finding
from chaos.circumstances import Recovery, Sky
from chaos.record import Account
from chaos.report import Run, Tally, lines, percentile
from tests.unit.chaos.made_up import ASK
from tests.unit.chaos.test_circumstances import Fault


class Blow(Fault):
    """A fault on a busy worker."""

    busy = True


def run(*findings: Finding, lossy: bool = False) -> Run:
    """A short run with one job and one fault."""
    tally = Tally()
    tally.add(Account("stream", ASK, "job_1"), findings, Sky(()))
    return Run(
        "python -m chaos", 7, 1.0, 2.0, 4.0, "always", tally, [Blow("worker_kill")], {"worker_kill": True}, lossy=lossy
    )


def test_nothing_found_is_green() -> None:
    assert list(run().reasons()) == []
    assert list(lines(run()))[-1] == "GREEN"


@pytest.mark.parametrize("column", COLUMNS)
def test_a_finding_in_any_column_is_red(column: Column) -> None:
    done = run(Finding(column, "job_1", "why"))
    assert list(done.reasons()) == [f"{column}: 1"]
    assert "RED" in list(lines(done))[-1]
    assert any("why" in line for line in lines(done))


def test_a_job_counts_once_in_a_column() -> None:
    twice = [
        Finding("gaps", "job_1", "a"),
        Finding("gaps", "job_1", "b"),
        Finding("leaks", "", "c"),
        Finding("leaks", "", "d"),
    ]
    assert run(*twice).tally.counts() == {"gaps": 1, "leaks": 2}


def test_a_fault_that_never_fired_and_a_client_that_failed_are_red() -> None:
    assert list(replace(run(), kinds={"worker_kill": True, "api_kill": False}).reasons()) == ["never fired: api_kill"]
    assert len(list(replace(run(), bugs=["KeyError"]).reasons())) == 1


def test_lost_writes_are_measured_and_torn_texts_are_red() -> None:
    assert list(run(Finding("taken back", "job_1", ""), lossy=True).reasons()) == []
    assert list(run(Finding("lost", "job_1", ""), lossy=True).reasons()) == ["lost: 1"]
    assert list(run(Finding("wrong texts", "job_1", ""), lossy=True).reasons()) == ["wrong texts: 1"]


def test_a_full_run_must_be_large_enough() -> None:
    reasons = list(replace(run(), minutes=25.0).reasons())
    assert len(reasons) == 5, reasons
    assert "no recovery after a worker's SIGKILL" in reasons[-1]
    assert all(reason.startswith("not reached") for reason in reasons)


def test_recoveries_have_a_bound() -> None:
    done = replace(run(), minutes=25.0)
    done.tally.recoveries += [Recovery("worker_kill", 4.1, True), Recovery("worker_kill", 99.0, False)]
    assert any("max 4.1 s, 4.0 s at most" in reason for reason in done.reasons())
    assert any("| 2 | 4.1 s | 99.0 s | 1 | 4.1 s | 4.1 s |" in line for line in lines(done)), (
        "the table shows those with other faults, too"
    )


def test_percentiles_are_the_nearest_rank() -> None:
    assert [percentile(range(1, 101), share) for share in (50, 99, 100)] == [50, 99, 100]
    assert percentile([5.0], 50) == 5.0
    assert math.isnan(percentile([], 50))
