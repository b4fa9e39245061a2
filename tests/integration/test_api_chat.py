"""Chat and completions through a real port, with the OpenAI SDK as it is; a scripted worker says the words."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.api_server import HELLO, MODEL, ApiLine, chat_body


def test_the_sdk_streams(line: ApiLine) -> None:
    answering = line.later("Hel", "", "lo ", "🌊")
    stream = line.sdk.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    answering.join()
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.content for c in chunks[1:-2]] == ["Hel", "lo ", "🌊"]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 4
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_sdk_gets_a_whole_answer(line: ApiLine) -> None:
    answering = line.later("3, ", "4", finish="length")
    answer = line.sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
    answering.join()
    assert answer.choices[0].message.content == "3, 4"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 2
    assert answer.id.startswith("chatcmpl-")


def test_the_sdk_bears_waiting_and_silence(line: ApiLine) -> None:
    """Comments in line and between tokens; after an id the SDK takes a comment's blank line for an empty event."""
    stream = line.sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    pause = threading.Event()
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(list, stream)
        pause.wait(1.3)
        attempt = line.worker.claim()
        attempt.say("a")
        pause.wait(1.3)
        attempt.end(text="b")
        assert "".join(c.choices[0].delta.content or "" for c in reading.result(10)) == "ab"


def test_comments_while_waiting_and_silent(line: ApiLine) -> None:
    body = {"model": MODEL, "prompt": "ahead", "priority": "interactive"}
    first = line.http.post("/v1/jobs", json=body).json()
    lines: list[str] = []
    with line.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True)) as response:
        assert response.headers["x-penstock-queue-position"] == "2"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-penstock-job-id"].startswith("chatcmpl-")
        for text in response.iter_lines():
            lines.append(text)
            match lines.count(": queued position=2"), len([x for x in lines if x.startswith(": queued position=1")]):
                case (2, 0) if text == ": queued position=2":
                    ahead = line.worker.claim()
                    assert ahead.spec.id == first["id"]
                    ahead.end(text="x")
                case (_, 1) if text.startswith(": queued position=1"):
                    attempt = line.worker.claim()
                    attempt.say("word")
                case _ if text == ": keep-alive":
                    attempt.end()
    assert ": keep-alive" in lines
    assert lines[-2:] == ["data: [DONE]", ""]


def test_ids_are_those_of_the_entries(line: ApiLine) -> None:
    answering = line.later("a", "", "b")
    with line.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True)) as response:
        ids = [text[4:] for text in response.iter_lines() if text.startswith("id: ")]
    answering.join()
    assert [entry_id.partition("-")[2] for entry_id in ids] == ["1", "2", "4", "5"]


def test_a_resumed_attempt_is_invisible(line: ApiLine) -> None:
    stream = line.sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    first = line.worker.claim()
    first.say("one ", "two ")
    first.give_back()
    second = line.worker.claim()
    second.say("three")
    second.end()
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "one two three"
    assert sum(1 for c in chunks if c.choices[0].delta.role) == 1


def test_several_choices(line: ApiLine) -> None:
    stream = line.sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True, n=2)
    attempt = line.worker.claim()
    attempt.say("a", choice=0)
    attempt.say("b", choice=1)
    attempt.finish_choice(1, "length")
    attempt.end("stop", text="c", choice=0)
    texts, finishes = ["", ""], ["", ""]
    for chunk in stream:
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert (texts, finishes) == (["ac", "b"], ["stop", "length"])


def test_logprobs(line: ApiLine) -> None:
    def answer() -> None:
        attempt = line.worker.claim()
        attempt.say("é", logprobs=True)
        attempt.end()

    for create, kwargs in (
        (line.sdk.chat.completions.create, {"messages": HELLO, "logprobs": True, "top_logprobs": 1}),
        (line.sdk.completions.create, {"prompt": "x", "logprobs": 1}),
    ):
        thread = threading.Thread(target=answer)
        thread.start()
        reply: Any = create(model=MODEL, **kwargs)  # type: ignore[operator]
        thread.join()
        logprobs = reply.choices[0].logprobs
        if "messages" in kwargs:
            assert logprobs.content[0].token == "é"
            assert logprobs.content[0].bytes == list("é".encode())
            assert logprobs.content[0].top_logprobs[0].logprob == -0.5
        else:
            assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (["é"], [-0.5], [0])
            assert logprobs.top_logprobs == [{"é": -0.5}]


@pytest.mark.parametrize("prompt", ["hi", ["hi", "ho"], [5, 6], [[5], [6, 7]]])
def test_completions_take_all_four_forms(line: ApiLine, prompt: Any) -> None:
    count = 2 if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(line.sdk.completions.create, model=MODEL, prompt=prompt)
        attempt = line.worker.claim()
        assert attempt.spec.sampling.max_tokens == 16
        assert attempt.spec.choices == count
        for choice in range(count):
            attempt.say(f"answer {choice}", choice=choice)
        for choice in range(count - 1):
            attempt.finish_choice(choice)
        attempt.end(choice=count - 1)
        answer = asking.result(10)
    assert [choice.text for choice in answer.choices] == [f"answer {choice}" for choice in range(count)]
    assert answer.id.startswith("cmpl-")


def test_completions_stream(line: ApiLine) -> None:
    answering = line.later("a", "b")
    chunks = list(line.sdk.completions.create(model=MODEL, prompt="x", stream=True))
    answering.join()
    assert [chunk.choices[0].text for chunk in chunks] == ["a", "b", ""]
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("code", "status"), [("poisoned", 500), ("engine_error", 500), ("deadline_exceeded", 504), ("worker_lost", 503)]
)
def test_a_failed_job_is_an_error(line: ApiLine, code: str, status: int) -> None:
    def fail() -> None:
        attempt = line.worker.claim()
        attempt.say("half of ")
        attempt.fail(code, "it broke")

    failing = threading.Thread(target=fail)
    failing.start()
    with pytest.raises(openai.APIStatusError) as caught:
        line.sdk.chat.completions.create(model=MODEL, messages=HELLO)
    failing.join()
    assert (caught.value.status_code, caught.value.code, caught.value.body["message"]) == (status, code, "it broke")  # type: ignore[index]

    failing = threading.Thread(target=fail)
    failing.start()
    stream = line.sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "half of "]
    with pytest.raises(openai.APIError, match="it broke"):
        next(stream)
    failing.join()


def test_a_mid_stream_error_is_followed_by_done(line: ApiLine) -> None:
    with line.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True)) as response:
        attempt = line.worker.claim()
        line.http.post(f"/v1/jobs/{attempt.spec.id}/cancel")
        assert attempt.say("a") == "cancel"
        attempt.fail("cancelled", "", state="cancelled")
        lines = [text for text in response.iter_lines() if text.startswith("data: ")]
    assert '"code":"cancelled"' in lines[-2]
    assert lines[-1] == "data: [DONE]"
