"""What a model must not do to its positions and windows, if its sequences are to be batched with our attention.

The check at load (`check`) reads short texts, and so cannot see what begins further on.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from workers.engine.paged_batch import Unsupported

#: The factors of these depend on the longest sequence of a forward, and so on neighbours and on how a prompt is cut.
_BY_LENGTH = {"longrope", "dynamic"}


def check_layers(text: Any) -> None:
    """Raises `Unsupported` for kinds of layers and of positions that cannot be batched. `text` is the text model's config."""
    strange = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if strange:
        raise Unsupported(f"it has layers of {', '.join(sorted(strange))}")
    by_length = _rope_types(getattr(text, "rope_parameters", None) or {}) & _BY_LENGTH
    if by_length:
        raise Unsupported(f"its positions ({', '.join(sorted(by_length))}) depend on the longest sequence of a batch")


def check_windows(text: Any, asked: Collection[int | None]) -> None:
    """Raises `Unsupported` where the windows that attention was asked for are not those of the configuration: a model may
    have its window in a mask alone, and there are no masks here.
    """
    kinds = getattr(text, "layer_types", None)
    windowed = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", True)
    if getattr(text, "sliding_window", None) and windowed and set(asked) <= {None}:
        raise Unsupported("its sliding window is in a mask, and not asked of the attention")


def _rope_types(given: dict[str, Any]) -> set[str]:
    """Of all layers, or kind of layers by kind."""
    nested = [each for each in given.values() if isinstance(each, dict)]
    return {str(each.get("rope_type")) for each in nested or [given]}
