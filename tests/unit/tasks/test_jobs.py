"""The table of transitions, ids, and what goes into the record."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import errors, jobs
from tasks.jobs import BANDS, PREFIXES, TRANSITIONS, Job, JobSpec, JobState, is_id, new_id
from tasks.sampling import Sampling


def test_every_state_has_a_row_and_the_ends_absorb() -> None:
    assert set(TRANSITIONS) == set(JobState)
    ends = {state for state in JobState if state.terminal}
    assert ends == {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    assert all(reason for targets in TRANSITIONS.values() for reason in targets.values())


def test_the_scripts_get_the_same_table() -> None:
    moves = set(re.findall(r"\['(\w+)>(\w+)'\] = true", jobs.lua_table()))
    assert moves == {(str(a), str(b)) for a, targets in TRANSITIONS.items() for b in targets}
    assert jobs.lua_table().count("=") == len(moves) + 2


def test_every_state_but_queued_can_be_reached_from_queued_and_nothing_leaves_an_end() -> None:
    reached: set[JobState] = set()
    todo = [JobState.QUEUED]
    while todo:
        targets = set(TRANSITIONS[todo.pop()]) - reached
        reached |= targets
        todo += targets
    assert reached == set(JobState)


@pytest.mark.parametrize("route", PREFIXES)
def test_an_id_is_the_routes_prefix_and_24_characters(route: str) -> None:
    made = new_id(route)
    assert re.fullmatch(re.escape(PREFIXES[route]) + "[A-Za-z0-9]{24}", made)
    assert is_id(made)
    assert new_id(route) != made


@pytest.mark.parametrize(
    "text",
    ["", "job_", "job_" + "a" * 23, "job_" + "a" * 25, "job_" + "a" * 23 + "-", "job_" + "a" * 23 + "\n", "JOB_" + "a" * 24,
     "a" * 24, "job_" + "é" * 24, "job_" + "a" * 22 + ":*", "xjob_" + "a" * 24],
)  # fmt: skip
def test_what_is_no_id_is_refused(text: str) -> None:
    assert not is_id(text)


sampling = st.builds(
    Sampling,
    max_tokens=st.integers(1, 9999),
    seed=st.integers(0, 2**63 - 1),
    temperature=st.floats(0, 2),
    logit_bias=st.dictionaries(st.integers(0, 99999), st.floats(-100, 100), max_size=3),
    stop=st.lists(st.text(), max_size=4).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
)
specs = st.builds(
    JobSpec,
    id=st.builds(new_id, st.sampled_from(list(PREFIXES))),
    kind=st.sampled_from(["chat", "completion"]),
    model=st.just("demo"),
    prompts=st.lists(st.lists(st.integers(0, 2**31), max_size=5).map(tuple), min_size=1, max_size=3).map(tuple),
    sampling=sampling,
    n=st.integers(1, 4),
    priority=st.sampled_from(list(BANDS)),
    deadline_ms=st.none() | st.integers(1, 10**9),
    metadata=st.dictionaries(st.text(), st.text(), max_size=3),
)


@given(specs)
def test_a_spec_survives_its_json(spec: JobSpec) -> None:
    assert JobSpec.from_json(spec.to_json()) == spec


def test_choices_and_prompt_tokens_are_counted_over_all_prompts() -> None:
    spec = JobSpec("job_x", "completion", "demo", ((1, 2), (3,)), Sampling(max_tokens=1, seed=0), n=3)
    assert (spec.choices, spec.prompt_tokens) == (6, 3)


def test_a_record_with_only_what_submit_writes_can_be_read() -> None:
    spec = JobSpec("job_x", "chat", "demo", ((1,),), Sampling(max_tokens=1, seed=0))
    job = Job.from_hash({"spec": spec.to_json(), "state": "queued", "created": "7", "code": "", "worker": ""})
    assert (job.id, job.created, job.started, job.finished, job.code, job.worker, job.cancel) == (
        *("job_x", 7, None, None, None, None, False),
    )


def test_every_refusal_and_failure_has_a_code_of_its_own() -> None:
    values = [code.value for code in errors.ErrorCode]
    assert len(set(values)) == len(values)
    error = errors.Conflict("twice", param="Idempotency-Key")
    assert (error.code, error.param, str(error)) == (errors.ErrorCode.IDEMPOTENCY_CONFLICT, "Idempotency-Key", "twice")
    assert errors.QueueFull("full", 7).retry_after_s == 7
    assert errors.PenstockError("x", code=errors.ErrorCode.NO_WORKER).code is errors.ErrorCode.NO_WORKER
