"""Grammars over tokens: what may come next, how an answer ends, replay, and rows that do not see each other."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from tasks.sampling import Grammar, Sampling
from tests.tiny_models import END, byte_tokenizer
from workers.engine.base import Event, InvalidRequest, Request
from workers.engine.constraint import Constraint, Grammars
from workers.engine.sampler import Sampler
from workers.engine.sequence import LiveSequence
from workers.engine.vocabulary import Vocabulary

TOKENIZER = byte_tokenizer()
END_ID = TOKENIZER.token_to_id(END)
USER_ID = TOKENIZER.token_to_id("<|user|>")
SIZE = TOKENIZER.get_vocab_size() + 45  # models often have more logits than tokens
GRAMMARS = Grammars(TOKENIZER, SIZE, [END_ID, USER_ID])
INTEGER = Grammar("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}')
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["a", "ü"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


def row(
    grammar: Grammar | None, done: str | list[int] = "", grammars: Grammars = GRAMMARS, **fields: Any
) -> LiveSequence:
    sampling = Sampling(**{"max_tokens": 400, "seed": 3, "grammar": grammar} | fields)
    tokens = ids(done) if isinstance(done, str) else done
    constraint = None if grammar is None else grammars.constraint(grammar)
    return LiveSequence(Request("a", [1], sampling, done=tokens), TOKENIZER, [END_ID, USER_ID], constraint)


def allowed(sequence: LiveSequence) -> set[int]:
    assert sequence.constraint is not None
    bits = np.unpackbits(sequence.constraint.allowed.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def logits(count: int, index: int) -> torch.Tensor:
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(index)) * 3.0


def answer(sequence: LiveSequence) -> list[Event]:
    """Sampled from logits that depend on the index only, as a model's would on the prompt and the answer."""
    events = []
    while sequence.finish is None:
        (choice,) = Sampler(Vocabulary(TOKENIZER)).choose(logits(1, len(sequence.tokens)), [sequence])
        events.append(sequence.advance(choice.token, choice.logprob))
    return events


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def test_the_end_is_allowed_exactly_when_the_grammar_may_end() -> None:
    digits = Grammar("regex", "[0-9]{2,3}")
    assert allowed(row(digits)) == allowed(row(digits, "1")) == set(ids("0123456789"))
    assert allowed(row(digits, "12")) == {*ids("0123456789"), END_ID, USER_ID}
    assert row(digits, "12").finish is None
    assert row(digits, "123").finish == "stop"
    assert row(digits, [*ids("12"), END_ID]).finish == "stop"


def test_an_answer_ends_with_its_last_token_when_nothing_may_follow() -> None:
    sequence = row(INTEGER, '{"a":7')
    event = sequence.advance(ids("}")[0])
    assert (event.text, event.finish, event.error) == ('{"a":7}', "stop", None)
    last = row(INTEGER, '{"a":7', max_tokens=7)
    assert last.advance(ids("}")[0]).finish == "stop"
    assert row(INTEGER, '{"a":7', max_tokens=7).advance(ids("8")[0]).finish == "length"


def test_neither_special_tokens_nor_logits_without_a_token_are_allowed() -> None:
    anything = allowed(row(Grammar("regex", r"(?s:.*)")))
    assert anything - {END_ID, USER_ID} < set(range(256))
    assert TOKENIZER.token_to_id("<|assistant|>") not in anything


def test_a_grammar_can_name_a_special_token() -> None:
    sequence = row(Grammar("lark", 'start: "a" <|assistant|>'), "a")
    assert allowed(sequence) == {TOKENIZER.token_to_id("<|assistant|>")}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_random_logits_make_what_the_schema_says(temperature: float) -> None:
    for seed in range(20):
        sequence = row(Grammar("json_schema", json.dumps(PERSON)), seed=seed, temperature=temperature, logprobs=1)
        events = answer(sequence)
        made = json.loads(text_of(events))
        assert events[-1].finish == "stop"
        assert list(made) == ["name", "age", "tags"]
        assert 1 <= len(made["name"]) <= 12
        assert 0 <= made["age"] <= 999
        assert set(made["tags"]) <= {"a", "ü"}


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {}, {"top_p": 0.8, "min_p": 0.01}, {"top_k": 3}])
@pytest.mark.parametrize("grammar", [Grammar("json_schema", json.dumps(PERSON)), Grammar("regex", "([äb]x?){5,9}")])
def test_replay_at_every_token_goes_on_as_before(grammar: Grammar, fields: dict[str, Any]) -> None:
    events = answer(row(grammar, **fields))
    tokens = [token for event in events for token in event.tokens]
    for cut in range(len(tokens)):
        again = row(grammar, tokens[:cut], **fields)
        rest = answer(again)
        assert again.tokens == tokens
        assert text_of(rest) == text_of(events)
        assert rest[-1].finish == events[-1].finish


def test_rows_do_not_see_each_other_and_free_rows_are_free() -> None:
    rows = [
        *(row(INTEGER, '{"a":', temperature=0.0), row(None, temperature=0.0), row(Grammar("regex", "[xy]+"))),
        *(row(None, top_p=0.5), row(Grammar("regex", "é|x"), top_k=2)),
    ]
    scores = logits(len(rows), 7)
    sampler = Sampler(Vocabulary(TOKENIZER))
    together = sampler.choose(scores.clone(), rows)
    for at, one in enumerate(rows):
        assert sampler.choose(scores[at : at + 1].clone(), [one])[0] == together[at]
    assert together[1].token == int(scores[1].argmax())
    assert together[0].token in ids("-0123456789")
    assert together[2].token in ids("xy")


def test_a_grammar_outweighs_biases_and_leaves_the_models_logprobs_alone() -> None:
    scores = logits(1, 1)
    one = row(Grammar("regex", "[xy]"), temperature=0.0, logprobs=2, logit_bias={ids("q")[0]: 100.0})
    (choice,) = Sampler(Vocabulary(TOKENIZER)).choose(scores.clone(), [one])
    assert choice.token in ids("xy")
    assert choice.logprob is not None
    own = torch.log_softmax(scores[0], -1)
    assert choice.logprob.logprob == pytest.approx(float(own[choice.token]), abs=1e-5)
    assert choice.logprob.top[0].logprob == pytest.approx(float(own.max()), abs=1e-5)


@pytest.mark.parametrize(
    ("grammar", "word"),
    [
        (Grammar("json_schema", "[]"), "response_format"),
        (Grammar("json_schema", '{"type": "nope"}'), "response_format.*nope"),
        (Grammar("regex", "("), "regex"),
        (Grammar("lark", "start: <|nobody|>"), r"grammar.*nobody"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused(grammar: Grammar, word: str) -> None:
    with pytest.raises(InvalidRequest, match=re.compile(word, re.S)):
        GRAMMARS.constraint(grammar)


def test_a_grammar_that_is_too_complex_is_an_error_of_its_own_row() -> None:
    sequence = row(Grammar("regex", "a{1000000}"))
    events = answer(sequence)
    assert (events[-1].finish, events[-1].code) == ("error", "invalid_request")
    assert (events[-1].error or "").startswith("regex: ")


def test_tokens_that_do_not_fit_are_an_error() -> None:
    sequence = row(Grammar("regex", "ab"), "x")
    assert sequence.finish == "error"
    assert sequence.fault()[1] == "invalid_request"


def test_a_model_without_the_bytes_of_a_grammar_gives_up_at_once() -> None:
    pieces = {"a": 0, "b": 1, END: 2}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    grammars = Grammars(tokenizer, 3, [2])
    constraint = grammars.constraint(Grammar("regex", "q"))
    constraint.look()
    assert constraint.ended
    assert "no token" in (constraint.error or "")


@pytest.mark.parametrize("eos", [[], [10**6]])
def test_a_model_without_an_end_token_ends_with_its_grammar(eos: list[int]) -> None:
    grammars = Grammars(TOKENIZER, SIZE, eos)
    constraint: Constraint = grammars.constraint(Grammar("regex", "ab?"))
    constraint.look()
    constraint.take(ids("a")[0])
    constraint.look()
    assert np.unpackbits(constraint.allowed.view(np.uint8)).sum() == 1  # b, and no end token
    assert not constraint.ended
    constraint.take(ids("b")[0])
    assert (constraint.ended, constraint.error) == (True, None)
    empty = grammars.constraint(Grammar("lark", 'start: ""'))
    empty.look()
    assert (empty.ended, empty.error) == (True, None)


def test_tokens_of_sentencepiece_are_understood() -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "é"]
    vocab = {piece: at for at, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    grammars = Grammars(tokenizer, len(pieces), [2])
    constraint = grammars.constraint(Grammar("regex", "a( a|é)*"))
    met = []  # without the byte tokens that have a text token beside them: either may be missing
    for piece in ("a", "▁a", "<0xC3>", "<0xA9>", "é"):
        constraint.look()
        bits = np.unpackbits(constraint.allowed.view(np.uint8), bitorder="little")
        met.append({pieces[token] for token in np.flatnonzero(bits)} - {"<0x61>", "<0x20>"})
        constraint.take(vocab[piece])
    going_on = {"▁", "▁a", "é", "<0xC3>", "</s>"}
    assert met == [{"a"}, going_on, going_on, {"<0xA9>"}, going_on]
    assert constraint.error is None


@pytest.mark.parametrize("kind", [models.WordPiece, models.WordLevel])
def test_a_tokenizer_that_is_not_known_is_a_value_error_or_works(kind: Any) -> None:
    unknown = Tokenizer(kind(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match=r"."):
        Grammars(unknown, 2, [0])
