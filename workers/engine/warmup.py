"""A full batch before the first job, where it proves something: on a GPU, that a step fits beside the KV cache.

On a CPU it does not: the check at load has read all weights and run every kernel, and the first batch after it takes
about a tenth longer than the next ones.
"""

from __future__ import annotations

from tasks.sampling import Sampling
from workers.engine.base import Request
from workers.engine.batching import Backend
from workers.engine.budget import Budget
from workers.engine.loading import Loaded
from workers.engine.recovery import is_out_of_memory
from workers.engine.sequence import LiveSequence
from workers.engine.trial import arbitrary_text, run_to_end

#: The kinds of devices on which a model is warmed up.
WARMED = frozenset({"cuda"})
_ANSWER = 2  # tokens of each sequence: one from the prompt, one with everybody else


def warm_up(backend: Backend, loaded: Loaded, budget: Budget, longest: int) -> None:
    """Run as many sequences as there may be, with as many tokens as one forward takes. Leaves nothing behind.

    Raises `ValueError` with the remedy when the device has not the memory for it.
    """
    if loaded.model.device.type not in WARMED:
        return
    size = max(1, min(longest - _ANSWER, -(-budget.max_batch_tokens // budget.max_num_seqs)))
    try:
        run_to_end(backend, [_sequence(number, size, loaded) for number in range(budget.max_num_seqs)])
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        text = f"{budget.max_num_seqs} sequences with {size} tokens each do not fit beside the KV cache"
        raise ValueError(f"{text}: set a smaller max_num_seqs, or free memory of the device") from error
    finally:
        backend.reset()


def _sequence(number: int, size: int, loaded: Loaded) -> LiveSequence:
    """An arbitrary prompt that shares no prefix with the others."""
    prompt = arbitrary_text(number, size, loaded.profile.vocab_size)
    sampling = Sampling(max_tokens=_ANSWER, seed=number, temperature=1.0, top_p=0.9)
    return LiveSequence(Request(str(number), prompt, sampling), loaded.tokenizer, ())
