"""What requests may not hold: unsupported fields that ask for something, and text that is none."""

from __future__ import annotations

from typing import Any, Final

from tasks.errors import ErrorCode, Refused

#: Fields of OpenAI's that we do not support, and the values that ask for nothing. null is always one.
UNSUPPORTED_CHAT: Final[dict[str, tuple[Any, ...]]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "verbosity": (),
    "web_search_options": (),
}
UNSUPPORTED_COMPLETION: Final[dict[str, tuple[Any, ...]]] = {"best_of": (1,), "echo": (False,), "suffix": ("",)}
UNSUPPORTED_MESSAGE: Final[dict[str, tuple[Any, ...]]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "reasoning_content": (),
    "refusal": (),
}
UNSUPPORTED_JOB: Final[dict[str, tuple[Any, ...]]] = {"webhook": ()}

#: No request needs more. The JSON parser bears a thousand, at which Python code that follows the nesting gives up.
DEEPEST: Final = 64


def drop_neutral(data: Any, table: dict[str, tuple[Any, ...]], at: str = "") -> Any:
    """Without the unsupported fields that ask for nothing; raises for one that asks."""
    if not isinstance(data, dict):
        return data
    for name in data.keys() & table.keys():
        value = data[name]
        if value is not None and not any(type(value) is type(neutral) and value == neutral for neutral in table[name]):
            param = at + name
            raise Refused(f"{param} is not supported", param=param, code=ErrorCode.UNSUPPORTED_PARAMETER)
    return {name: value for name, value in data.items() if name not in table}


def check_text(data: Any, at: str = "", depth: int = 0) -> None:
    """JSON can spell half of a character (\\ud800), which is no text: nothing behind this could write it down.

    Refuses what is nested too deeply as well.
    """
    if depth > DEEPEST:
        raise Refused("the body is nested too deeply", code=ErrorCode.INVALID_JSON)
    if isinstance(data, str):
        try:
            data.encode()
        except UnicodeEncodeError as error:
            text = f"{at}: half of a surrogate pair at position {error.start}" if at else "half of a surrogate pair"
            raise Refused(text, param=at or None) from None
    elif isinstance(data, dict):
        for name, value in data.items():
            check_text(name, at, depth)
            check_text(value, f"{at}.{name}" if at else name, depth + 1)
    elif isinstance(data, list):
        for i, value in enumerate(data):
            check_text(value, f"{at}[{i}]", depth + 1)
