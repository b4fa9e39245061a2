"""What is made of records."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from bench.burst_report import fates, prediction
from bench.load import Outcome
from bench.load_http import GAVE_UP, Record
from bench.load_plan import Plan
from bench.load_report import Result, quantile, quantiles, summarise
from bench.usage import Used


def record(intended: float = 0.0, chunks: tuple[float, ...] = (), **fields: object) -> Record:
    values = {"tag": "", "status": 200, "finish": "length", "end": chunks[-1] if chunks else -1.0, **fields}
    return Record(intended=intended, sent=intended, chunks=list(chunks), **values)  # type: ignore[arg-type]


def summary_of(*records: Record, seconds: float = 10.0, concurrency: int = 0):  # type: ignore[no-untyped-def]
    return summarise(Outcome(Plan("x", [], seconds, concurrency), list(records), 0.1), max_tokens=4, deadline_s=2.0)


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100)])
def test_a_quantile_is_one_of_the_values(share: float, value: float) -> None:
    assert quantile(list(range(100, 0, -1)), share) == value


def test_quantiles_of_few_and_of_none() -> None:
    assert quantiles([7.0]) == quantiles([7.0, 7.0])
    assert math.isnan(quantile([], 0.5))


def test_latency_counts_from_the_intended_time_and_a_missing_answer_counts() -> None:
    late = record(intended=1.0, chunks=(3.0, 3.5))
    never = record(intended=1.0, error=GAVE_UP)
    refused = record(intended=1.0, status=429, error="HTTP 429")
    summary = summary_of(late, never, refused)
    assert summary.ttft.p50 == 2.0
    assert math.isinf(summary.ttft.p99)  # the refused one is not among them
    assert (summary.asked, summary.complete, summary.rejected, summary.within) == (3, 1, 1, 0)
    assert summary.errors == {GAVE_UP: 1, "HTTP 429": 1}


def test_goodput_is_what_ended_within_the_deadline() -> None:
    summary = summary_of(record(chunks=(0.5, 1.0)), record(chunks=(0.5, 3.0)), seconds=10.0)
    assert summary.within == 1
    assert summary.good_share == 0.5
    assert summary.goodput == pytest.approx(0.1)
    assert summary_of(record(intended=9.0, chunks=(10.0, 10.5))).goodput == pytest.approx(1 / 10.5)


def test_tokens_after_the_plans_end_do_not_count() -> None:
    summary = summary_of(record(chunks=(1.0, 2.0, 11.0, 12.0), tokens=4), seconds=10.0, concurrency=1)
    assert summary.tokens_per_s == pytest.approx(0.2)


def test_a_burst_lasts_until_its_last_piece() -> None:
    summary = summary_of(record(chunks=(1.0, 4.0), tokens=8), seconds=0.0)
    assert summary.seconds == 4.0
    assert summary.tokens_per_s == pytest.approx(2.0)


def test_a_server_that_counts_no_tokens_is_taken_by_the_finish_reason() -> None:
    assert summary_of(record(chunks=(1.0, 2.0)), seconds=1000.0).tokens_per_s == pytest.approx(4 / 1000)
    assert summary_of(record(chunks=(1.0, 2.0), finish="stop"), seconds=1000.0).tokens_per_s == pytest.approx(2 / 1000)


def test_a_result_survives_json() -> None:
    result = Result("a", "b", 0, summary_of(record(chunks=(1.0, 2.0)), record(error=GAVE_UP)), {"api": Used(1.0, 2)})
    assert Result.from_json(json.loads(json.dumps(asdict(result)))) == result


def test_every_request_of_a_burst_has_one_fate() -> None:
    fate = fates(
        [
            record(chunks=(1.0,)),
            record(status=429, error="HTTP 429", retry_after="5"),
            record(status=429, error="HTTP 429"),
            record(status=503, error="HTTP 503"),
            record(error="error in the stream: lost"),
            record(error=GAVE_UP),
            record(error="cut off"),
            record(status=0, error="no answer in time"),
            record(status=0, error="no connection: refused"),
        ]
    )
    assert (fate.complete, fate.refused, fate.refused_silent, fate.broken, fate.given_up, fate.lost) == (
        1,
        2,
        1,
        2,
        1,
        3,
    )
    assert fate.complete + fate.refused + fate.broken + fate.given_up + fate.lost == fate.asked


def test_the_predicted_wait_is_held_against_the_real_one() -> None:
    told = record(chunks=(10.0,), head=2.0, eta_s=6.0)
    short = record(chunks=(2.5,), head=2.0, eta_s=0.0)
    untold = record(chunks=(10.0,), head=2.0)
    said = prediction([told, short, untold])
    assert (said.told, said.absolute, said.relative) == (2, [2.0, 0.5], [0.25])
