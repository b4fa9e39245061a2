"""The fake engine: a scripted model with the real semantics of continuous batching, and no torch.

For tests, for load tests of everything that is not the model, and for the docs. It imports `tokenizers` and
nothing else beside the standard library. Up to `max_num_seqs` sequences run, the others wait in order; one
step advances every running sequence by one token. What it answers follows from the last user message (of a
plain prompt: from all of it). A script follows no grammar, so requests with one are refused. Answers:

- `Count from A to B.`     "A, A+1, ..., B"
- `[tokens=200]`           200 words, one token each: in a fixed order at temperature 0, else drawn by (seed,
  choice, index)
- anything else            the message itself, without its directives

Directives stand in square brackets anywhere in that message. An index counts answer tokens from 0:

- `[step_ms=50]`           a step takes at least the largest such wish of its running sequences; 5 without one
- `[fail_at=10]`           the step that would make token 10 raises a RuntimeError, every time
- `[fail_once_at=10]`      the same, but only the first time
- `[oom_at=10]`            the same with MemoryError, every time
- `[die_at=10]`            the process kills itself with SIGKILL: a poisoned job
- `[hang_at=10]`           the step blocks for `[hang_s=3600]` seconds, then goes on
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from workers.engine import fake_model
from workers.engine.base import ModelProfile, TokenLogprob
from workers.engine.batching import BatchingEngine, Made
from workers.engine.fake_model import Script
from workers.engine.registry import EngineSpec
from workers.engine.sequence import LiveSequence
from workers.engine.vocabulary import Vocabulary

DEFAULT_MAX_MODEL_LEN = 8192


@dataclass(slots=True)
class _Line:
    """What the script says about one sequence."""

    sequence: LiveSequence
    script: Script
    answer: list[int]

    @property
    def index(self) -> int:
        return len(self.sequence.tokens)

    def next_token(self) -> int:
        """The scripted token; past the end, where a foreign `done` can lead, the answer ends, as soon as it may."""
        token = self.answer[self.index] if self.index < len(self.answer) else fake_model.END_TOKEN
        return fake_model.FILLER_TOKEN if token in self.sequence.forbidden else token


class ScriptedBackend:
    """A backend that knows every answer in advance and spends the time of a forward sleeping."""

    def __init__(self, max_num_seqs: int, max_model_len: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._kv_tokens = max_num_seqs * max_model_len
        self._lines: dict[str, _Line] = {}  # in order of arrival: the first `max_num_seqs` run
        self._batch: list[_Line] = []
        self._failed_once: set[str] = set()
        tokenizer = fake_model.build_tokenizer()
        self._vocabulary, self._vocab_size = Vocabulary(tokenizer), tokenizer.get_vocab_size()

    def add(self, sequence: LiveSequence) -> None:
        request = sequence.request
        script, text = fake_model.read_script(fake_model.last_user_message(list(request.prompt)))
        answer = fake_model.answer(script, text, request.sampling, request.choice)
        self._lines[request.rid] = _Line(sequence, script, answer)

    def drop(self, rid: str) -> None:
        self._lines.pop(rid, None)

    def forward(self) -> list[Made]:
        self._batch = list(islice(self._lines.values(), self._max_num_seqs))
        for line in self._batch:
            self._misbehave(line)
        if self._batch:
            time.sleep(max(line.script.step_ms for line in self._batch) / 1000)
        return [self._make(line) for line in self._batch]

    def batch(self) -> Sequence[str]:
        return [line.sequence.rid for line in self._batch]

    def reset(self) -> None:
        self._lines.clear()

    def running(self) -> int:
        return min(len(self._lines), self._max_num_seqs)

    def kv_used(self) -> float:
        running = islice(self._lines.values(), self._max_num_seqs)
        used = sum(len(line.sequence.request.prompt) + line.index for line in running)
        return min(1.0, used / self._kv_tokens)

    def close(self) -> None:
        self._lines.clear()

    def _make(self, line: _Line) -> Made:
        token, wanted = line.next_token(), line.sequence.request.sampling.logprobs
        return Made(line.sequence.rid, token, None if wanted is None else self._logprob(token, wanted))

    def _logprob(self, token: int, wanted: int) -> TokenLogprob:
        """A made-up distribution: the chosen token has half of the mass, each following id half of the rest."""
        ranked = [(token + rank) % self._vocab_size for rank in range(wanted)]
        top = [self._vocabulary.logprob(each, -math.log(2) * (rank + 1)) for rank, each in enumerate(ranked)]
        return self._vocabulary.logprob(token, -math.log(2), tuple(top))

    def _misbehave(self, line: _Line) -> None:
        script, index, rid = line.script, line.index, line.sequence.rid
        if script.die_at == index:
            os.kill(os.getpid(), signal.SIGKILL)
        if script.hang_at == index:
            time.sleep(script.hang_s)
        if script.oom_at == index:
            raise MemoryError(f"scripted out of memory at token {index}")
        if script.fail_at == index:
            raise RuntimeError(f"scripted failure at token {index}")
        if script.fail_once_at == index and rid not in self._failed_once:
            self._failed_once.add(rid)
            raise RuntimeError(f"scripted failure, once, at token {index}")


def build(spec: EngineSpec) -> BatchingEngine:
    """The registry's entry."""
    tokenizer = fake_model.build_tokenizer()
    profile = ModelProfile(
        tokenizer=tokenizer.to_str(),
        chat_template=fake_model.CHAT_TEMPLATE,
        special_tokens={"eos_token": fake_model.END},
        max_model_len=spec.max_model_len or DEFAULT_MAX_MODEL_LEN,
        vocab_size=tokenizer.get_vocab_size(),
    )
    backend = ScriptedBackend(spec.max_num_seqs, profile.max_model_len)
    spec.say("the fake engine is ready")
    return BatchingEngine(backend, profile, tokenizer, [fake_model.END_TOKEN], spec.max_num_seqs)
