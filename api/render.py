"""Pure functions from a job and its log to the objects that clients get: answers, usage, the job itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from api.calls import read_calls
from api.dialects import DIALECTS
from api.errors import code_of, error_object
from api.logprobs import CompletionLogprobs, chat_logprobs
from tasks.errors import PenstockError
from tasks.events import ChoiceEnd, Delta, End, Entry
from tasks.jobs import Job, JobSpec, JobState

#: What clients know as finish reasons; an engine's other ones never reach a choice that succeeded.
FINISH_REASONS = {"stop": "stop", "length": "length"}


@dataclass(slots=True)
class Choice:
    """One answer, as far as the log goes."""

    text: str = ""
    tokens: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None


@dataclass(slots=True)
class Answer:
    """A log, folded: every choice, and the terminal entry if it is there."""

    choices: list[Choice]
    end: End | None = None

    @property
    def tokens(self) -> int:
        """Answer tokens of all choices."""
        return sum(choice.tokens for choice in self.choices)


def fold(spec: JobSpec, entries: Iterable[Entry]) -> Answer:
    """What the entries of a log add up to."""
    answer = Answer([Choice() for _ in range(spec.choices)])
    texts: list[list[str]] = [[] for _ in answer.choices]
    for entry in entries:
        match entry:
            case Delta():
                texts[entry.choice].append(entry.text)
                answer.choices[entry.choice].tokens += len(entry.tokens)
                answer.choices[entry.choice].logprobs += entry.logprobs or ()
            case ChoiceEnd():
                answer.choices[entry.choice].finish = entry.finish
            case End():
                answer.end = entry
                if entry.choice is not None:
                    answer.choices[entry.choice].finish = entry.finish
    for choice, parts in zip(answer.choices, texts, strict=True):
        choice.text = "".join(parts)
    return answer


def finish_reason(finish: str | None, calls: int = 0) -> str:
    """OpenAI's finish reason of an engine's; an answer that ended by itself with calls of tools has another one."""
    reason = FINISH_REASONS.get(finish or "stop", "stop")
    return "tool_calls" if calls and reason == "stop" else reason


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def failure(code: str | None, message: str | None, state: str) -> PenstockError:
    """Why a job ended without an answer, as an error to raise or show."""
    text = message or ("the job was cancelled" if state == JobState.CANCELLED else f"the job failed: {code}")
    return PenstockError(text, code=code_of(code or ("cancelled" if state == JobState.CANCELLED else None)))


def answer_object(spec: JobSpec, created: int, answer: Answer) -> dict[str, Any]:
    """The whole chat.completion or text_completion. `created` is in seconds."""
    chat = spec.kind == "chat"
    rows = [
        _chat_choice(spec, i, choice) if chat else _text_choice(spec, i, choice)
        for i, choice in enumerate(answer.choices)
    ]
    body: dict[str, Any] = {
        "id": spec.id,
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": spec.model,
        "system_fingerprint": None,
        "choices": rows,
        "usage": usage(spec.prompt_tokens, answer.tokens),
    }
    if chat and spec.store:
        body["metadata"] = spec.metadata
    return body


def _chat_choice(spec: JobSpec, index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    calls: list[dict[str, Any]] = []
    if spec.tool_format:
        said, calls = read_calls(DIALECTS[spec.tool_format], spec.id, index, choice.text)
        if calls:
            message |= {"content": said or None, "tool_calls": calls}
    return {
        "index": index,
        "message": message,
        "logprobs": None if spec.sampling.logprobs is None else chat_logprobs(choice.logprobs),
        "finish_reason": finish_reason(choice.finish, len(calls)),
    }


def _text_choice(spec: JobSpec, index: int, choice: Choice) -> dict[str, Any]:
    logprobs = None
    if spec.sampling.logprobs is not None:
        logprobs = CompletionLogprobs()
        logprobs.add(choice.logprobs)
    return {
        "index": index,
        "text": choice.text,
        "logprobs": logprobs.take() if logprobs else None,
        "finish_reason": finish_reason(choice.finish),
    }


def job_object(job: Job, position: int | None, eta_s: float | None, answer: Answer | None) -> dict[str, Any]:
    """The job as /v1/jobs shows it; without `answer` (in lists) it has neither text nor result."""
    done = job.state is JobState.SUCCEEDED
    created = job.created // 1000
    failed = job.state in (JobState.FAILED, JobState.CANCELLED)
    error = error_object(failure(job.code, job.message, job.state))["error"] if failed else None
    if error is not None:
        error = {"code": error["code"], "message": error["message"]}
    whole = answer is not None and answer.end is not None
    return {
        "id": job.id,
        "object": "job",
        "state": str(job.state),
        "model": job.spec.model,
        "created_at": created,
        "started_at": job.started and job.started // 1000,
        "finished_at": job.finished and job.finished // 1000,
        "attempts": job.attempt,
        "queue": {"position": position, "eta_s": eta_s} if job.state is JobState.QUEUED else None,
        "output_text": answer.choices[0].text if answer else None,
        "usage": usage(job.spec.prompt_tokens, job.tokens),
        "result": answer_object(job.spec, created, answer) if done and whole and answer else None,
        "error": error,
        "priority": job.spec.priority,
        "metadata": job.spec.metadata,
    }
