"""Entries and their ids: what is written is what is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.events import START, ChoiceEnd, Delta, End, Entry, EntryId, Started, decode, encode

number = st.integers(0, 2**63 - 1)
small = st.integers(0, 2**31)
logprob = st.fixed_dictionaries({"token": st.text(), "logprob": st.floats(allow_nan=False, allow_infinity=False)})
optional = st.none() | st.text()
entries: st.SearchStrategy[Entry] = st.one_of(
    st.builds(Started, small, small),
    st.builds(
        Delta, small, small, st.lists(small).map(tuple), st.text(), st.none() | st.lists(logprob, max_size=3).map(tuple)
    ),
    st.builds(ChoiceEnd, small, st.text()),
    st.builds(End, st.text(), small, st.none() | small, optional, optional, optional),
)


@given(entries)
def test_an_entry_survives_its_encoding(entry: Entry) -> None:
    text = encode(entry)
    assert decode(json.loads(text)) == entry
    assert "\n" not in text  # one line, so it can be an SSE data field as it is


def test_entries_are_encoded_as_documented() -> None:
    assert encode(Started(2, 5)) == '{"k":"started","attempt":2,"tokens":5}'
    assert encode(Delta(0, 3, (7, 8), "é ")) == '{"k":"delta","c":0,"i":3,"t":[7,8],"s":"é "}'
    assert encode(ChoiceEnd(1, "stop")) == '{"k":"choice_end","c":1,"f":"stop"}'
    assert encode(End("succeeded", 4, 0, "length")) == '{"k":"end","state":"succeeded","tokens":4,"c":0,"f":"length"}'
    assert encode(End("failed", 0, code="poisoned", message="m")).endswith('"code":"poisoned","message":"m"}')


@pytest.mark.parametrize("data", [{"k": "later"}, {}])
def test_an_unknown_kind_is_an_error(data: dict[str, Any]) -> None:
    with pytest.raises(KeyError):
        decode(data)


@given(number, number)
def test_an_id_survives_its_text(fence: int, seq: int) -> None:
    name = EntryId(fence, seq)
    assert EntryId.parse(str(name)) == name


@given(st.tuples(number, number), st.tuples(number, number))
def test_ids_compare_as_pairs_of_integers(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (EntryId(*one) < EntryId(*other)) == (one < other)
    assert EntryId(*one) >= START


@pytest.mark.parametrize(
    "text",
    ["", "1", "-", "1-", "-1", "1-2-3", " 1-2", "1-2 ", "1-2\n", "01-2", "1-02", "+1-2", "1--2", "a-b", "1_0-2", "٣-٤",
     "1.0-2", "0x1-2", f"{2**63}-1", f"1-{2**63}", "9" * 20 + "-1", "9" * 5000 + "-1", "$", "*", "1-*", "(1-2"],
)  # fmt: skip
def test_a_malformed_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="12-34"):
        EntryId.parse(text)


@given(st.text())
def test_whatever_parses_has_one_spelling(text: str) -> None:
    try:
        name = EntryId.parse(text)
    except ValueError:
        return
    assert str(name) == text
