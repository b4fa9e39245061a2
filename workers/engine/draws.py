"""Random draws without generator state: the draw for a token depends on its place in the answer and on
nothing else.

So a resumed sequence draws what the interrupted one would have drawn, and neighbours in the batch change
nothing.
"""

from __future__ import annotations

from hashlib import blake2b

_TO_UNIT = 1.0 / (1 << 53)


def uniform(seed: int, choice: int, index: int) -> float:
    """A number in [0, 1) for answer token `index` of choice `choice`; any integer is a valid seed."""
    digest = blake2b(b"%d:%d:%d" % (seed, choice, index), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * _TO_UNIT
