"""`penstock chat`: a conversation in the terminal, token by token.

Ctrl-C stops the answer, a second one at the prompt leaves. A broken connection is taken up where it was. Without a
terminal on stdin every line is a message, so that it can stand in a script.
"""

from __future__ import annotations

import contextlib
import re
import sys
from typing import Any

import httpx
from rich.console import Console

from cli.client import ApiError, ChatStream, Client, InLine, Resumed, Text

PROMPT = "\n> "
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
HELP = "/new forgets the conversation, /exit leaves, Ctrl-C stops an answer."


def chat(console: Console, client: Client, model: str, system: str, options: dict[str, Any]) -> None:
    """Talk until /exit, Ctrl-D or the end of stdin."""
    model = client.model(model)
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 -- gives input() line editing and history
        console.print(f"{model} at {client.url}. {HELP}", style="dim", markup=False, highlight=False)
    first = [{"role": "system", "content": system}] if system else []
    history = list(first)
    while (line := _read(interactive)) is not None:
        match line.strip():
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/new":
                history = list(first)
            case "/help":
                console.print(HELP, style="dim")
            case text:
                history.append({"role": "user", "content": text})
                try:
                    answer = _answer(console, client.chat({"model": model, "messages": history, **options}))
                except ApiError as error:
                    if not interactive:
                        raise
                    history.pop()  # as if it had not been said: the next message may be answered
                    console.print(error.message, style="red", markup=False, highlight=False)
                else:
                    history.append({"role": "assistant", "content": answer})


def plain(text: str) -> str:
    """Without control characters: an answer must not drive the terminal."""
    return _CONTROL.sub("", text)


def _read(interactive: bool) -> str | None:
    try:
        return input(PROMPT if interactive else "")
    except (EOFError, KeyboardInterrupt):
        return None


def _answer(console: Console, stream: ChatStream) -> str:
    """Show an answer as it comes; what was shown of it."""
    parts: list[str] = []
    waiting = console.status("Waiting")
    try:
        waiting.start()
        for event in stream:
            match event:
                case Text(text):
                    waiting.stop()
                    parts.append(text)
                    console.out(plain(text), end="", highlight=False)
                case InLine(place):
                    waiting.update(f"In line: {place}")
                case Resumed():
                    waiting.update("The connection broke: taking the answer up again")
    except KeyboardInterrupt:
        with contextlib.suppress(httpx.HTTPError):
            stream.cancel()
        console.out(" [stopped]", end="", highlight=False)
    finally:
        waiting.stop()
        console.out("")
    return "".join(parts)
