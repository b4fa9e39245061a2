"""How far the loading of weights has come, in lines: transformers draws a bar, which is no use in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

from transformers.utils import logging

EVERY_S = 2.0  # a small model is there before the first line
_BAR = "Loading weights"


@contextmanager
def weights_told(say: Callable[[str], None]) -> Iterator[None]:
    """While this lasts, `say` hears of the weights that transformers loads, at most every `EVERY_S`."""

    def hook(draw: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _counted(args[0], say) if kwargs.get("desc") == _BAR else draw(*args, **kwargs)

    shown, library = logging.is_progress_bar_enabled(), cast(Any, logging)  # untyped
    library.disable_progress_bar()
    before = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
        if shown:
            library.enable_progress_bar()


def _counted(tensors: Collection[Any], say: Callable[[str], None]) -> Iterator[Any]:
    """The same tensors. Each is in place when the next is asked for."""
    said = time.monotonic()
    for done, tensor in enumerate(tensors):
        if time.monotonic() - said >= EVERY_S:
            said = time.monotonic()
            say(f"weights: {done / len(tensors):.0%}, {done} of {len(tensors)} tensors")
        yield tensor
