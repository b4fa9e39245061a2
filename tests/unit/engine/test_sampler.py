"""The sampler against plain definitions, and its two promises: rows are independent, draws are reproducible."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.sampling import Sampling
from workers.engine import distribution
from workers.engine.base import Request
from workers.engine.draws import uniform
from workers.engine.fake_model import build_tokenizer
from workers.engine.sampler import Sampler
from workers.engine.sequence import LiveSequence
from workers.engine.vocabulary import Vocabulary

SIZE = 300
torch.set_num_threads(1)


def row(done: tuple[int, ...] = (), prompt: tuple[int, ...] = (1,), choice: int = 0, **fields: Any) -> LiveSequence:
    sampling = Sampling(**{"max_tokens": 1000, "seed": 1} | fields)
    return LiveSequence(Request("a", prompt, sampling, choice=choice, done=done), build_tokenizer(), ())


def sampler(candidates: int = 1024) -> Sampler:
    return Sampler(Vocabulary(build_tokenizer()), candidates)


def pick(logits: torch.Tensor, *rows: LiveSequence, candidates: int = 1024) -> list[int]:
    return [choice.token for choice in sampler(candidates).choose(logits.clone(), rows)]


def random_logits(count: int, seed: int = 0, width: float = 3.0) -> torch.Tensor:
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed)) * width


def frequencies(logits: torch.Tensor, draws: int = 4000, **fields: Any) -> torch.Tensor:
    """How often each token is drawn, over many seeds."""
    rows = [row(seed=seed, **fields) for seed in range(draws)]
    tokens = pick(logits.repeat(draws, 1), *rows)
    return torch.bincount(torch.tensor(tokens), minlength=logits.shape[-1]) / draws


def test_draws_are_uniform_and_differ_by_every_argument() -> None:
    draws = torch.tensor([uniform(seed, 0, index) for seed in range(50) for index in range(100)])
    assert abs(float(draws.mean()) - 0.5) < 0.02
    assert 0.0 <= float(draws.min()) < float(draws.max()) < 1.0
    assert len({uniform(1, 0, 0), uniform(0, 1, 0), uniform(0, 0, 1), uniform(-1, 0, 0), uniform(2**70, 0, 0)}) == 5


def test_greedy_takes_the_best_logit() -> None:
    logits = random_logits(5)
    assert pick(logits, *[row(temperature=0.0) for _ in range(5)]) == logits.argmax(-1).tolist()
    assert pick(logits, *[row(temperature=1e-9) for _ in range(5)]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_should_be(temperature: float) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]])
    expected = torch.softmax(logits[0] / temperature, -1)
    assert torch.allclose(frequencies(logits, temperature=temperature), expected, atol=0.03)


def test_top_p_is_exact_however_flat_the_distribution() -> None:
    """Ten thousand equal tokens: a cut at 0.9 must keep nine thousand of them, not the best 1024."""
    logits = torch.linspace(1e-3, 0.0, 10_000).unsqueeze(0)
    tokens = pick(logits.repeat(2000, 1), *[row(seed=seed, top_p=0.9) for seed in range(2000)])
    assert 8800 < max(tokens) < 9001
    assert sum(tokens) / len(tokens) == pytest.approx(4500, rel=0.05)


@given(
    seed=st.integers(0, 1000),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.5),
    width=st.floats(0.1, 5.0),
)
@settings(deadline=None)
def test_a_drawn_token_survives_every_cut(seed: int, top_k: int, top_p: float, min_p: float, width: float) -> None:
    logits = random_logits(1, seed, width)
    probs = torch.softmax(logits[0].double(), -1).sort(descending=True)
    allowed = probs.values.clone()
    if top_k:
        allowed[top_k:] = 0
        allowed /= allowed.sum()
    before = allowed.cumsum(0) - allowed
    allowed[(before >= top_p + 1e-5) | (probs.values < (min_p - 1e-5) * probs.values[0])] = 0
    (token,) = pick(logits, row(seed=seed, top_k=top_k, top_p=top_p, min_p=min_p))
    assert allowed[int((probs.indices == token).nonzero())] > 0


@given(seed=st.integers(0, 1000), top_p=st.floats(0.05, 1.0), min_p=st.floats(0.0, 0.3), top_k=st.integers(0, 60))
@example(seed=0, top_p=0.9999999999999999, min_p=0.0, top_k=0)
@settings(deadline=None)
def test_few_candidates_give_the_same_token_as_all(seed: int, top_p: float, min_p: float, top_k: int) -> None:
    logits = random_logits(1, seed, 1.0)
    one = row(seed=seed, top_p=top_p, min_p=min_p, top_k=top_k)
    assert pick(logits, one, candidates=16) == pick(logits, one, candidates=SIZE)


@pytest.mark.parametrize("candidates", [4, 64])
def test_tokens_as_probable_as_the_last_that_is_kept_are_kept_too(candidates: int) -> None:
    logits = torch.full((1, SIZE), -5.0)
    logits[0, [7, 20, 30, 40]] = torch.tensor([3.0, 2.0, 2.0, 2.0])
    drawn = {pick(logits, row(seed=seed, top_k=2), candidates=candidates)[0] for seed in range(100)}
    assert drawn == {7, 20, 30, 40}
    drawn = {pick(logits, row(seed=seed, top_p=0.6), candidates=candidates)[0] for seed in range(100)}
    assert drawn == {7, 20, 30, 40}


@pytest.mark.parametrize("candidates", [3, 64])
def test_a_share_of_the_best_counts_those_that_tie_with_the_last_of_them(candidates: int) -> None:
    """Of one token with 0.4 and three with 0.2, top_k=2 leaves all four: 0.6 of these are two at least, and so all."""
    logits = torch.full((1, SIZE), -50.0)
    logits[0, [7, 20, 30, 40]] = torch.tensor([0.4, 0.2, 0.2, 0.2]).log()
    drawn = {pick(logits, row(seed=seed, top_k=2, top_p=0.6), candidates=candidates)[0] for seed in range(100)}
    assert drawn == {7, 20, 30, 40}
    drawn = {pick(logits, row(seed=seed, top_k=2, top_p=0.39), candidates=candidates)[0] for seed in range(50)}
    assert drawn == {7}


def test_a_batch_that_is_cut_into_parts_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(12)
    rows = [row(seed=seed, **SOME[seed % 4]) for seed in range(12) if seed % 4 != 2] + [row(seed=1)] * 3
    whole = pick(logits, *rows)
    monkeypatch.setattr(distribution, "_CPU_NUMBERS", SIZE * 5)
    assert pick(logits, *rows) == whole


@pytest.mark.parametrize("size", [513, 1500])
def test_the_last_share_is_drawn_from_the_last_token_with_weight(size: int) -> None:
    """Sums of blocks and sums inside a block round differently; neither may lead past the end."""
    logits = torch.randn(300, size, generator=torch.Generator().manual_seed(1))
    params = [Sampling(max_tokens=1, seed=0)] * len(logits)
    for last in (size - 1, size - 3):
        logits[:, last + 1 :] = -torch.inf
        tokens = distribution.draw(logits.clone(), params, [1.0 - 2.0**-53] * len(logits))
        assert set(tokens.tolist()) == {last}


@pytest.mark.parametrize("size", [5, 512, 513, 1024, 1500])
def test_every_token_can_be_drawn_whatever_the_size_of_the_vocabulary(size: int) -> None:
    shares = [(token + 0.5) / size for token in range(size)]
    params = [Sampling(max_tokens=1, seed=0)] * size
    tokens = distribution.draw(torch.zeros(size, size), params, shares)
    assert tokens.tolist() == list(range(size))


SOME: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"top_p": 0.8, "seed": 9},
    {"top_k": 5, "min_p": 0.05},
    {"top_p": 0.99, "temperature": 2.0, "logprobs": 2},
    {"repetition_penalty": 1.3, "done": (3, 4, 4, 5), "prompt": (7, 8)},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5, "done": (3, 4, 4, 5), "logprobs": 0},
    {"logit_bias": {5: 3.0, 6: -100.0}, "temperature": 0.0},
]


@given(st.lists(st.integers(0, len(SOME) - 1), min_size=2, max_size=12), st.integers(0, 100))
@settings(deadline=None)
def test_a_row_does_not_depend_on_its_neighbours(kinds: list[int], seed: int) -> None:
    logits = random_logits(len(kinds), seed)
    rows = [row(**SOME[kind]) for kind in kinds]
    together = sampler(64).choose(logits.clone(), rows)
    for at, one in enumerate(rows):
        assert sampler(64).choose(logits[at : at + 1].clone(), [one]) == [together[at]]


def test_penalties_follow_their_definitions() -> None:
    logits = torch.zeros(1, SIZE)
    logits[0, :6] = torch.tensor([4.0, -1.0, 3.9, 3.8, 3.0, 3.7])
    assert pick(logits, row(temperature=0.0)) == [0]
    assert pick(logits, row(temperature=0.0, repetition_penalty=1.1, prompt=(0, 1))) == [2]
    assert pick(logits, row(temperature=0.0, presence_penalty=0.15, done=(0,))) == [2]
    assert pick(logits, row(temperature=0.0, presence_penalty=0.15, prompt=(0, 1))) == [0]
    assert pick(logits, row(temperature=0.0, frequency_penalty=0.15, done=(0, 0, 2))) == [3]
    assert pick(logits, row(temperature=0.0, logit_bias={4: 1.5})) == [4]


def test_repetition_penalty_makes_negative_logits_smaller() -> None:
    logits = torch.full((1, SIZE), -9.0)
    logits[0, 3], logits[0, 4] = -2.0, -2.1
    assert pick(logits, row(temperature=0.0, repetition_penalty=1.2, done=(3,))) == [4]


def test_logprobs_are_those_of_the_model() -> None:
    logits = random_logits(1)
    one = row(temperature=0.3, top_k=2, logit_bias={17: 50.0}, logprobs=3)
    ((token, logprob),) = sampler().choose(logits.clone(), [one])
    expected = torch.log_softmax(logits[0], -1)
    assert token == 17
    assert logprob is not None
    assert logprob.logprob == pytest.approx(float(expected[17]), abs=1e-5)
    assert [each.logprob for each in logprob.top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-5)


def test_a_draw_never_lands_on_a_token_without_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.full((1, SIZE), float("-inf"))
    logits[0, 5], logits[0, 9] = 0.0, 0.0
    for draw, token in ((0.0, 5), (1.0 - 2.0**-53, 9)):
        monkeypatch.setattr("workers.engine.sampler.uniform", lambda *_, draw=draw: draw)
        assert pick(logits, row()) == [token]
        assert pick(logits, row(top_p=0.999)) == [token]


def test_an_impossible_token_has_a_log_probability_that_json_can_carry() -> None:
    assert Vocabulary(build_tokenizer()).logprob(65, float("-inf")).logprob == -9999.0


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 5}], ids=str)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error(fields: dict[str, Any], broken: float) -> None:
    """A token that was drawn from them would look like any other."""
    logits = random_logits(3)
    logits[1, 7] = broken
    rows = [row(), row(**fields), row(temperature=0.0)]
    with pytest.raises(FloatingPointError, match="1 of 3"):
        pick(logits, *rows)


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {}, {"top_p": 0.9}], ids=str)
def test_a_row_without_any_possible_token_is_an_error(fields: dict[str, Any]) -> None:
    logits = torch.full((1, SIZE), float("-inf"))
    with pytest.raises(FloatingPointError):
        pick(logits, row(**fields))
