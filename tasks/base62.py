"""Numbers as letters and digits, for ids."""

from __future__ import annotations

import string
from typing import Final

BASE62: Final = string.ascii_letters + string.digits


def base62(number: int, digits: int) -> str:
    """The last `digits` base62 digits of a number that is not negative, the lowest first."""
    text = ""
    for _ in range(digits):
        number, digit = divmod(number, 62)
        text += BASE62[digit]
    return text
