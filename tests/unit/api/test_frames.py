"""What readers that are behind get: fewer events, and the same answer."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from api.chunks import ChatChunks, CompletionChunks
from api.frames import JOINED, JOINED_CHARS, Frames, TextFrames, frame, joined
from api.render import Answer, fold
from tasks.events import ChoiceEnd, Delta, End, Entry, EntryId, Started
from tasks.jobs import JobSpec
from tasks.sampling import Sampling

Items = list[tuple[EntryId, Entry]]
LOGPROBS = ({"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": []},)
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "the café 🌊", "n": [1, 2]}}\n</tool_call>'


def numbered(entries: list[Entry]) -> Items:
    return [(EntryId(7, seq), entry) for seq, entry in enumerate(entries, 1)]


def spec_of(kind: str, **changes: Any) -> JobSpec:
    sampling = Sampling(16, 1, logprobs=1 if changes.pop("logprobs", False) else None)
    return JobSpec("chatcmpl-" + "A" * 24, kind, "m", ((1,),), sampling, **changes)  # type: ignore[arg-type]


def log_of(dice: random.Random, choices: int, logprobs: float) -> Items:
    """Any log: several attempts, choices that mix and end, empty texts."""
    entries: list[Entry] = [Started(1, 0)]
    index = [0] * choices
    for _ in range(dice.randint(0, 300)):
        if dice.random() < 0.02:
            entries.append(Started(2, sum(index)))
        choice = dice.randrange(choices) if dice.random() < 0.1 else 0
        text = dice.choice(["", " a", "é", "\u2028", '"', "\\", "🌊", "w" * 900])
        with_them = LOGPROBS if dice.random() < logprobs else None
        entries.append(Delta(choice, index[choice], (index[choice],), text, with_them))
        index[choice] += 1
    entries += [ChoiceEnd(choice, "stop") for choice in range(1, choices)]
    return numbered([*entries, End("succeeded", sum(index), 0, "stop")])


@pytest.mark.parametrize("seed", range(40))
def test_a_joined_log_is_the_same_answer(seed: int) -> None:
    dice = random.Random(seed)
    items = log_of(dice, choices := dice.randint(1, 3), dice.choice([0.0, 0.0, 0.3]))
    rows = joined(items)
    spec = spec_of("chat", n=choices)
    assert folded(spec, rows) == folded(spec, items)
    assert [at for at, _ in rows] == sorted({at for at, _ in rows} & {at for at, _ in items})
    assert rows[-1] == items[-1]
    tokens = {(entry.choice, entry.index): entry.tokens for _, entry in items if isinstance(entry, Delta)}
    for _, entry in rows:
        if isinstance(entry, Delta):
            assert tokens[entry.choice, entry.index] == entry.tokens[:1]
            assert len(entry.tokens) <= JOINED
            assert len(entry.text) <= JOINED_CHARS


@pytest.mark.parametrize("seed", range(10))
def test_one_may_come_back_after_any_joined_event(seed: int) -> None:
    """What follows its id is all that was not yet said."""
    items = log_of(random.Random(seed), 2, 0.0)
    rows = joined(items)
    spec = spec_of("chat", n=2)
    for i, (at, _) in enumerate(rows):
        rest = [item for item in items if item[0] > at]
        assert folded(spec, rows[: i + 1] + rest) == folded(spec, items)


def folded(spec: JobSpec, items: Items) -> Answer:
    return fold(spec, [entry for _, entry in items])


def contents(render: Frames, items: Items) -> tuple[str, list[Any], str]:
    """Text, log probabilities, and what calls of tools add up to."""
    text, rows, calls = "", [], ""
    for line in b"".join(render.frames(at, entry) for at, entry in items).decode().split("\n"):
        if not line.startswith("data: {"):
            continue
        choice = json.loads(line[6:])["choices"][0]
        delta = choice.get("delta", choice)
        text += delta.get("content") or delta.get("text") or ""
        for call in delta.get("tool_calls") or ():
            calls += call["function"].get("name", "") + call["function"]["arguments"]
        rows += (choice["logprobs"] or {}).get("content") or (choice["logprobs"] or {}).get("text_offset") or []
    return text, rows, calls


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("logprobs", [False, True])
def test_joined_entries_read_the_same(kind: str, logprobs: bool) -> None:
    items = log_of(random.Random(3), 1, 0.4 if logprobs else 0.0)
    made = ChatChunks if kind == "chat" else CompletionChunks
    first, second = (made(spec_of(kind, logprobs=logprobs), 1) for _ in range(2))
    assert contents(first, joined(items)) == contents(second, items)


def test_joined_calls_of_tools_read_the_same() -> None:
    deltas = [Delta(0, i, (i,), text) for i, text in enumerate("I look. " + CALL)]
    items = numbered([Started(1, 0), *deltas, End("succeeded", len(deltas), 0, "stop")])
    alone, together = (
        contents(ChatChunks(spec_of("chat", tool_format="hermes"), 1), rows) for rows in (items, joined(items))
    )
    assert alone == together
    assert "look" in alone[2]


@pytest.mark.parametrize("text", ["", "a", '"\\/\b\f\n\r\t\0', "é🌊", "\u2028\u2029\x85", "\x7f\x1c", "</script>"])
@pytest.mark.parametrize("model", ["m", 'an "odd" \u2028 näme\\'])
def test_the_constant_part_of_a_chunk_changes_nothing(text: str, model: str) -> None:
    def chunk(content: str) -> dict[str, Any]:
        return {"model": model, "choices": [{"delta": {"content": content}, "logprobs": None}], "usage": None}

    assert TextFrames(chunk).frame(EntryId(3, 9), text) == frame(chunk(text), EntryId(3, 9))
