"""The fake engine: its answers, its directives, and that it needs no torch."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from tasks.sampling import Sampling
from workers.engine.base import Event, Request
from workers.engine.batching import BatchingEngine
from workers.engine.registry import EngineSpec, build


@pytest.fixture
def engine() -> BatchingEngine:
    return build("fake", EngineSpec("scripted"))  # type: ignore[return-value]


def request(engine: BatchingEngine, prompt: str, rid: str = "a", choice: int = 0, **fields: object) -> Request:
    ids = Tokenizer.from_str(engine.profile.tokenizer).encode(prompt).ids
    sampling = Sampling(**{"max_tokens": 500, "seed": 1, **fields})  # type: ignore[arg-type]
    return Request(rid, ids, sampling, choice=choice)


def run(engine: BatchingEngine, *requests: Request) -> dict[str, list[Event]]:
    events: dict[str, list[Event]] = {one.rid: [] for one in requests}
    for one in requests:
        engine.submit(one)
    while engine.has_work():
        for event in engine.step():
            events[event.rid].append(event)
    return events


def answer(engine: BatchingEngine, prompt: str, **fields: object) -> str:
    return "".join(event.text for event in run(engine, request(engine, f"{prompt} [step_ms=0]", **fields))["a"])


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Count from 1 to 5.", "1, 2, 3, 4, 5"),
        ("Please count from -2 to 1, slowly", "-2, -1, 0, 1"),
        ("Count from 5 to 1.", "Count from 5 to 1."),
        ("Say 你好 and 👩‍👩‍👧!", "Say 你好 and 👩‍👩‍👧!"),
        ("[unknown=3] stays", "[unknown=3] stays"),
        ("[tokens=3]", "water falls through"),
    ],
)
def test_answers_follow_from_the_prompt(engine: BatchingEngine, prompt: str, text: str) -> None:
    assert answer(engine, prompt, temperature=0.0) == text


def test_the_last_user_message_of_a_chat_is_answered(engine: BatchingEngine) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Count from 1 to 2."},
        {"role": "assistant", "content": "1, 2"},
        {"role": "user", "content": "Thanks! [step_ms=0]"},
    ]
    template = ImmutableSandboxedEnvironment().from_string(engine.profile.chat_template or "")
    prompt = template.render(messages=messages, add_generation_prompt=True)
    events = run(engine, request(engine, prompt))["a"]
    assert "".join(event.text for event in events) == "Thanks!"
    assert (events[-1].finish, events[-1].text) == ("stop", "")


def test_words_are_one_token_each_and_random_only_when_the_temperature_is(engine: BatchingEngine) -> None:
    events = run(engine, request(engine, "[tokens=20] [step_ms=0]"))["a"]
    text = "".join(event.text for event in events)
    assert (len(events), len(text.split())) == (21, 20)
    assert answer(engine, "[tokens=20]") == text
    assert answer(engine, "[tokens=20]", seed=2) != text
    assert answer(engine, "[tokens=20]", temperature=0.0) == answer(engine, "[tokens=20]", temperature=0.0, seed=2)


def test_a_step_takes_as_long_as_its_slowest_sequence_asks(engine: BatchingEngine) -> None:
    for rid, wish in (("a", 1), ("b", 40)):
        engine.submit(request(engine, f"[tokens=3] [step_ms={wish}]", rid))
    begun = time.monotonic()
    assert len(engine.step()) == 2
    assert time.monotonic() - begun >= 0.04


@pytest.mark.parametrize(("directive", "code"), [("fail_at", "engine_error"), ("oom_at", "out_of_memory")])
def test_a_sequence_can_be_made_to_fail(engine: BatchingEngine, directive: str, code: str) -> None:
    engine.submit(request(engine, f"[tokens=9] [step_ms=0] [{directive}=4]"))
    events: list[Event] = []
    failures = 0
    while engine.has_work():
        try:
            events += engine.step()
        except (RuntimeError, MemoryError):
            failures += 1
            engine.recover()
    assert failures == 4
    assert (events[-1].finish, events[-1].code, events[-1].index) == ("error", code, 4)


def test_a_sequence_can_be_made_to_fail_once(engine: BatchingEngine) -> None:
    engine.submit(request(engine, "[tokens=9] [step_ms=0] [fail_once_at=4]", temperature=0.0))
    events = [event for _ in range(4) for event in engine.step()]
    with pytest.raises(RuntimeError, match="once"):
        engine.step()
    engine.recover()
    while engine.has_work():
        events += engine.step()
    assert "".join(event.text for event in events).startswith("water falls through the gate")
    assert events[-1].finish == "stop"


SCRIPT = """
import sys
from tasks.sampling import Sampling
from workers.engine.base import Request
from workers.engine.registry import EngineSpec, build
from tokenizers import Tokenizer
engine = build("fake", EngineSpec("scripted"))
prompt = Tokenizer.from_str(engine.profile.tokenizer).encode(sys.argv[1]).ids
engine.submit(Request("a", prompt, Sampling(max_tokens=50, seed=1)))
while engine.has_work():
    for event in engine.step():
        print(event.index, flush=True)
print([name for name in ("torch", "transformers", "numpy", "celery", "redis") if name in sys.modules])
"""


def in_a_process(prompt: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT, prompt], capture_output=True, text=True, timeout=timeout)


def test_it_imports_nothing_heavy() -> None:
    done = in_a_process("[tokens=1] [step_ms=0]")
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_poisoned_sequence_kills_the_process() -> None:
    done = in_a_process("[tokens=9] [step_ms=0] [die_at=3]")
    assert (done.returncode, done.stdout.split()) == (-signal.SIGKILL, ["0", "1", "2"])


def test_a_step_can_hang(engine: BatchingEngine) -> None:
    engine.submit(request(engine, "[tokens=2] [step_ms=0] [hang_at=1] [hang_s=1]"))
    engine.step()
    begun = time.monotonic()
    engine.step()
    assert time.monotonic() - begun >= 1.0


def test_an_unknown_engine_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'nope'.*fake, onnx, transformers"):
        build("nope", EngineSpec("x"))
    with pytest.raises(ValueError, match="max_num_seqs"):
        build("fake", EngineSpec("x", max_num_seqs=0))
