"""From messages or text to token ids, once per request and without torch.

The only file that imports transformers (its chat-template code, which needs no torch) and tokenizers. The ids equal
those of `tokenizer.apply_chat_template` and `tokenizer.encode`; a test compares them.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tokenizers import Tokenizer

from tasks.errors import BadConfig, ErrorCode, Refused
from tasks.profile import ModelProfile

#: Texts longer than this are tokenised in a thread, so that they do not hold up everybody's streams.
THREAD_CHARS = 8_000

Message = dict[str, Any]


@cache
def template_renderer() -> Callable[..., tuple[list[str], list[Any]]]:
    """transformers' renderer of chat templates. Takes a second the first time: call it in a thread."""
    try:
        module = importlib.import_module("transformers.utils.chat_template_utils")
    except ImportError as error:
        raise BadConfig(f"the API needs transformers for its chat templates, and it does not import: {error}") from None
    renderer: Callable[..., tuple[list[str], list[Any]]] = module.render_jinja_template
    return renderer


class Prompts:
    """Renders and tokenises for one model; built from the profile that its workers publish."""

    def __init__(self, profile: ModelProfile) -> None:
        self.profile = profile
        self._tokenizer = Tokenizer.from_str(profile.tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    async def chat(self, model: str, messages: Sequence[Message], tools: Sequence[Message] = ()) -> tuple[int, ...]:
        """The prompt of a conversation. Raises `Refused` if the model has no chat template, or the template objects."""
        if self.profile.chat_template is None:
            text = f"the model {model} has no chat template: use /v1/completions"
            raise Refused(text, param="model", code=ErrorCode.NO_CHAT_TEMPLATE)
        if sum(len(message["content"]) for message in messages) > THREAD_CHARS:
            return await asyncio.to_thread(self._chat, messages, tools)
        return self._chat(messages, tools)

    async def text(self, text: str) -> tuple[int, ...]:
        """The prompt of a plain completion."""
        if len(text) > THREAD_CHARS:
            return await asyncio.to_thread(self._encode, text, self.profile.add_special_tokens)
        return self._encode(text, self.profile.add_special_tokens)

    def render(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> str:
        """The text of a conversation, up to where the answer begins. `tools` are told to the model, if there are any."""
        try:
            rendered, _ = template_renderer()(
                [list(messages)],
                tools=list(tools) or None,
                chat_template=self.profile.chat_template,
                add_generation_prompt=True,
                **self.profile.special_tokens,
            )
        except BadConfig:
            raise
        except Exception as error:  # templates are programs: whatever they raise is about these messages
            text = f"the model's chat template does not accept these messages: {error}"
            raise Refused(text, param="messages") from None
        return rendered[0]

    def _chat(self, messages: Sequence[Message], tools: Sequence[Message]) -> tuple[int, ...]:
        return self._encode(self.render(messages, tools), False)

    def _encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
