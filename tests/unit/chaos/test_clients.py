"""What clients ask of the service beyond what they came for: a key once more, a cancel that was refused, a job's id."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from chaos import breaks, client
from chaos.client import Client
from chaos.clients import cancel, whole
from chaos.crowd import Crowd
from chaos.prompts import ENDLESS
from chaos.record import Account
from chaos.rehearsal import FOCUS
from chaos.wire import Wire
from tests.unit.chaos.made_up import ASK

URLS = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
ID = "x-penstock-job-id"
Handler = Callable[[httpx.Request], httpx.Response]
Make = Callable[[Handler], Client]


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """A client whose service is a function."""
    monkeypatch.setattr(Client, "moment", _no_moment)
    wires = []

    def made(handler: Handler) -> Client:
        wire = Wire(lambda: URLS, random.Random(1))
        wires.append((wire, wire._usual))
        wire._usual = httpx.AsyncClient(transport=httpx.MockTransport(handler))
        return Client(wire, random.Random(1), Account("events", ASK))

    yield made
    for wire, usual in wires:
        await wire.__aexit__(None, None, None)
        await usual.aclose()


async def _no_moment(self: Client) -> None:
    pass


def error(status: int, code: str, **headers: str) -> httpx.Response:
    """As the service refuses."""
    return httpx.Response(status, json={"error": {"code": code}}, headers=headers)


@pytest.mark.parametrize("repeated", [0.0, 1.0])
async def test_an_accepted_job_is_submitted_again_elsewhere(
    make: Make, monkeypatch: pytest.MonkeyPatch, repeated: float
) -> None:
    monkeypatch.setattr(client, "REPEATED", repeated)
    asked: list[tuple[int | None, str, bytes]] = []

    def service(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.port, request.headers["idempotency-key"], request.content))
        return httpx.Response(202, json={"id": f"job_{len(asked)}"})

    one = make(service)
    await one.submit_job()
    assert one.account.keyed
    assert (one.account.job, one.account.other_ids) == ("job_1", ["job_2"] * int(repeated))
    if repeated:
        first, second = asked
        assert first[1:] == second[1:]
        assert first[0] != second[0]


async def test_a_repeated_submit_may_fail_and_is_noted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REPEATED", 1.0)
    answers = iter([httpx.Response(202, json={"id": "job_1"}), error(503, "store_unavailable")])
    one = make(lambda request: next(answers))
    await one.submit_job()
    assert [(shown.where, shown.code) for shown in one.account.shown] == [("submit", "store_unavailable")]
    assert one.account.unanswered == 0


async def test_a_job_that_an_error_names_is_known(make: Make) -> None:
    body = {
        "choices": [{"text": "ab", "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 4},
    }
    answers = iter(
        [error(503, "server_shutdown", **{ID: "job_1"}), httpx.Response(200, json=body, headers={ID: "job_2"})]
    )
    one = make(lambda request: next(answers))
    await whole(one)
    assert one.account.keyed
    assert (one.account.job, one.account.other_ids) == ("job_1", ["job_2"])


def test_submits_without_an_answer_may_have_made_jobs_that_nobody_knows() -> None:
    made = Account("whole", ASK)
    made.show("submit", "cut", URLS[0])
    assert made.unanswered == 1
    made.keyed = True
    assert made.unanswered == 0, "the next answer named the job that it made"
    made.outcome = "refused"
    assert made.unanswered == 1, "there was no next answer"


@pytest.mark.parametrize(("state", "shown"), [("running", True), ("queued", True), ("cancelled", False)])
async def test_a_refused_cancel_needs_a_job_that_has_ended(
    make: Make, monkeypatch: pytest.MonkeyPatch, state: str, shown: bool
) -> None:
    def service(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/cancel"):
            return error(409, "job_not_cancellable")
        if request.url.path.endswith("/events"):
            return httpx.Response(204)
        return httpx.Response(202, json={"id": "job_1", "state": state})

    one = make(service)
    await cancel_at_once(one, monkeypatch)
    assert [each.code for each in one.account.shown] == ["job_not_cancellable"] + ["refused_though_running"] * shown
    assert one.account.cancelled_when == 0.0


async def test_an_accepted_cancel_has_its_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def service(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return httpx.Response(204)
        job = {"id": "job_1", "state": "cancelled", "attempts": 0, "usage": {"completion_tokens": 0}}
        return httpx.Response(202, json=job)

    one = make(service)
    await cancel_at_once(one, monkeypatch)
    assert one.account.cancelled_at == ("cancelled", 0, 0)
    assert one.account.cancelled_when > 0.0
    assert one.account.shown == []


async def cancel_at_once(one: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without watching the job before."""
    monkeypatch.setattr(one.rng, "random", lambda: 0.9)
    await cancel(one)


async def test_token_counts_are_asked_for_in_half_of_the_streams(make: Make) -> None:
    asked = []

    def service(request: httpx.Request) -> httpx.Response:
        asked.append(b"include_usage" in request.content)
        return httpx.Response(200, headers={ID: "job_1"}, stream=httpx.ByteStream(b"data: [DONE]\n\n"))

    one = make(service)
    for _ in range(20):
        one.account.wants_usage = False
        await one.submit_stream()
        assert one.account.wants_usage == asked[-1]
    assert set(asked) == {True, False}


async def test_half_of_the_cancels_ask_for_what_has_no_end(make: Make) -> None:
    one = make(lambda request: httpx.Response(204))
    crowd = Crowd(one.wire, random.Random(1), lambda account: None, size=1)
    tokens = Counter(crowd._draw("cancel").tokens >= ENDLESS for _ in range(100))
    assert 35 < tokens[True] < 65


def test_every_planted_bug_has_its_faults() -> None:
    assert set(FOCUS) == set(breaks.BREAKS)
    breaks.check(["idem"])
