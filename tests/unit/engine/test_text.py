"""Detokenising and stop strings: what is streamed is what a decoder makes of the whole answer, wherever it is cut."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from workers.engine.fake_model import END_TOKEN, build_tokenizer
from workers.engine.text import AnswerText, Detokenizer

TEXTS = [
    "The gate opens, and water falls.",
    "你好,世界!今天天气怎么样?我们去河边走走吧。",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "emoji 😀🎉 flags 🇩🇪🇯🇵 family 👩‍👩‍👧‍👦 skin 👍🏽 heart ❤️‍🔥",
    "naïve café Straße Ελληνικά ไทย हिन्दी 한국어 🧑🏿‍🚀",
    "A replacement \ufffd that the text itself contains\ufffd",
]


@cache
def trained() -> Tokenizer:
    """A byte-level BPE with merges that cross the borders of characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text[start:] for text in TEXTS for start in range(3)] * 3, trainer)
    return tokenizer


@cache
def llama_like() -> Tokenizer:
    """Pieces with a word mark, and bytes for everything else: the decoder of SentencePiece models."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "▁the", "▁gate", "a", "b", "e", "h", "g", "t"]
    tokenizer = Tokenizer(models.BPE({p: at for at, p in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


TOKENIZERS = [build_tokenizer, trained]


def stream(text: AnswerText, tokens: list[int]) -> list[str]:
    return [text.push(token) for token in tokens]


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("build", [*TOKENIZERS, llama_like])
@pytest.mark.parametrize("text", TEXTS)
def test_real_text_streams_to_itself(build, text):
    tokenizer = build()
    answer = AnswerText(tokenizer)
    deltas = stream(answer, ids(tokenizer, text))
    assert "".join(deltas) + answer.finish() == text


@pytest.mark.parametrize("build", TOKENIZERS)
@settings(deadline=None)
@given(data=st.data())
def test_random_tokens_stream_to_what_decoding_them_all_gives(build, data):
    tokenizer = build()
    tokens = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=60))
    answer = AnswerText(tokenizer)
    assert "".join(stream(answer, tokens)) + answer.finish() == tokenizer.decode(tokens, skip_special_tokens=True)


@settings(deadline=None)
@given(pieces=st.lists(st.one_of(st.text(max_size=6), st.binary(max_size=6)), max_size=12))
def test_text_broken_by_stray_bytes_streams_to_what_decoding_gives(pieces):
    tokenizer = build_tokenizer()
    raw = b"".join(piece if isinstance(piece, bytes) else piece.encode() for piece in pieces)
    table = {bytes([byte]): token for byte, token in byte_tokens().items()}
    tokens = [table[bytes([byte])] for byte in raw]
    answer = AnswerText(tokenizer)
    assert "".join(stream(answer, tokens)) + answer.finish() == raw.decode(errors="replace")


@cache
def byte_tokens() -> dict[int, int]:
    from workers.engine.vocabulary import _byte_of_character

    vocab = build_tokenizer().get_vocab()
    return {byte: vocab[char] for char, byte in _byte_of_character().items()}


@settings(deadline=None)
@given(tokens=st.lists(st.integers(0, 264), max_size=60))
def test_a_decoder_that_rewrites_its_past_neither_fails_nor_holds_text_for_ever(tokens):
    detokenizer = Detokenizer(llama_like())
    held = 0
    for token in tokens:
        held = 0 if detokenizer.push(token) else held + 1
        assert held <= 20


@pytest.mark.parametrize("build", TOKENIZERS)
@settings(deadline=None)
@given(data=st.data())
def test_resuming_at_every_token_gives_the_same_text(build, data):
    tokenizer = build()
    source = data.draw(st.one_of(st.sampled_from(TEXTS), st.text(max_size=30)))
    extra = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=12))
    tokens = ids(tokenizer, source) + extra
    stop = data.draw(st.lists(st.sampled_from(["a", "世", "😀", "ab", " the", "\ufffd\ufffd", "zz"]), max_size=3))
    whole = AnswerText(tokenizer, stop)
    deltas = stream(whole, tokens)
    text = "".join(deltas) + whole.finish()
    for cut in range(len(tokens) + 1):
        emitted = len("".join(deltas[:cut]))
        again = AnswerText(tokenizer, stop, emitted)
        rest = "".join(stream(again, tokens)) + again.finish()
        assert text[:emitted] + rest == text
        assert again.stopped == whole.stopped


@settings(deadline=None)
@given(st.text("ab.", max_size=30), st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_stop_string_that_is_complete_first(text, stop):
    tokenizer = build_tokenizer()
    answer = AnswerText(tokenizer, stop)
    sent = "".join(stream(answer, ids(tokenizer, text))) + answer.finish()
    found = [(text.find(one) + len(one), text.find(one)) for one in stop if one in text]
    assert sent == (text[: min(found)[1]] if found else text)
    assert answer.stopped == bool(found)


def test_text_that_may_begin_a_stop_string_is_held_and_then_sent():
    tokenizer = build_tokenizer()
    answer = AnswerText(tokenizer, ["END!"])
    assert stream(answer, ids(tokenizer, "xEN")) == ["x", "", ""]
    assert answer.push(ids(tokenizer, "D")[0]) == ""
    assert answer.push(ids(tokenizer, "x")[0]) == "ENDx"
    assert stream(answer, ids(tokenizer, "E")) == [""]
    assert answer.finish() == "E"


def test_an_unfinished_character_is_held_and_flushed_at_the_end():
    tokenizer = build_tokenizer()
    tokens = ids(tokenizer, "x😀")
    answer = AnswerText(tokenizer)
    assert stream(answer, tokens[:-1]) == ["x", "", "", ""]
    assert answer.finish() == "\ufffd"
    assert answer.finish() == ""


def test_bytes_that_never_complete_are_not_held_for_ever():
    answer = AnswerText(build_tokenizer())
    sent = stream(answer, [byte_tokens()[0x80]] * 30)
    assert "".join(sent).count("\ufffd") >= 20
    assert "".join(sent) + answer.finish() == "\ufffd" * 30


def test_a_character_that_begins_within_a_run_of_stray_bytes_is_whole():
    tokens = [byte_tokens()[byte] for byte in b"\x80" * 7 + "😀x".encode()]
    answer = AnswerText(build_tokenizer())
    assert "".join(stream(answer, tokens)) + answer.finish() == "\ufffd" * 7 + "😀x"


def test_special_tokens_have_no_text():
    answer = AnswerText(build_tokenizer())
    assert stream(answer, [END_TOKEN, *ids(build_tokenizer(), "x"), END_TOKEN]) == ["", "x", ""]
