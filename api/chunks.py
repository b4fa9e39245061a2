"""Pure: the entries of a log as SSE frames, one renderer per shape of stream.

`frames(at, entry)` gives the bytes of one entry; if that is several events, the last one carries the id, so that a
client which took up a half-delivered entry gets all of it again. `error` ends a stream that cannot go on, `close`
follows the last frame of every stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api.calls import Argued, Called, CallReader, Piece, Said, call_object
from api.dialects import DIALECTS
from api.errors import error_object
from api.frames import TextFrames, frame
from api.logprobs import CompletionLogprobs, chat_logprobs
from api.render import failure, finish_reason, usage
from tasks.errors import ErrorCode, PenstockError
from tasks.events import ChoiceEnd, Delta, End, Entry, EntryId, Started
from tasks.jobs import JobSpec, JobState

DONE = b"data: [DONE]\n\n"


class _Chunks:
    """What the two OpenAI shapes have in common."""

    object = ""
    shape = ""
    joins = True

    def __init__(self, spec: JobSpec, created: int) -> None:
        self._spec = spec
        self._texts: dict[int, TextFrames] = {}
        self._base: dict[str, Any] = {"id": spec.id, "object": self.object, "created": created}
        self._base |= {"model": spec.model, "system_fingerprint": None}

    def error(self, error: PenstockError) -> bytes:
        """OpenAI's error object in the stream."""
        return frame(error_object(error))

    def close(self) -> bytes:
        """OpenAI's end mark."""
        return DONE

    def _chunk(self, choices: list[dict[str, Any]], usage_: dict[str, Any] | None = None) -> dict[str, Any]:
        chunk = {**self._base, "choices": choices}
        if self._spec.include_usage:
            chunk["usage"] = usage_
        return chunk

    def _choice(self, index: int, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _text(self, at: EntryId, choice: int, text: str) -> bytes:
        """A chunk that only adds text, as nearly all do."""
        if not text:
            return b""
        frames = self._texts.get(choice)
        if frames is None:
            frames = self._texts[choice] = TextFrames(lambda hole: self._chunk([self._choice(choice, hole)]))
        return frames.frame(at, text)

    def _end(self, at: EntryId, end: End, finish: dict[str, Any] | None) -> bytes:
        if end.state != JobState.SUCCEEDED:
            return frame(error_object(failure(end.code, end.message, end.state)), at)
        rows = [self._chunk([finish])] if finish else []
        if self._spec.include_usage:
            rows.append(self._chunk([], usage(self._spec.prompt_tokens, end.tokens)))
        return b"".join(frame(row, at if row is rows[-1] else None) for row in rows)


class ChatChunks(_Chunks):
    """chat.completion.chunk events. `resumed`: the client has the role chunk already."""

    object = "chat.completion.chunk"

    def __init__(self, spec: JobSpec, created: int, resumed: bool = False) -> None:
        super().__init__(spec, created)
        self._begun = resumed
        dialect = DIALECTS.get(spec.tool_format)
        self._calls = [CallReader(dialect) for _ in range(spec.choices)] if dialect else []
        self.shape = "" if dialect else "chat"

    def _choice(self, index: int, text: str) -> dict[str, Any]:
        return _choice(index, {"content": text})

    def frames(self, at: EntryId, entry: Entry) -> bytes:
        """Role, content, finish and usage chunks."""
        match entry:
            case Started():
                return self._started(at)
            case Delta():
                return self._delta(at, entry)
            case ChoiceEnd():
                held = self._rest(entry.choice)
                return held + frame(self._chunk([self._finish(entry.choice, entry.finish)]), at)
            case End():
                if entry.choice is None:
                    return self._end(at, entry, None)
                held = self._rest(entry.choice)
                return held + self._end(at, entry, self._finish(entry.choice, entry.finish))

    def _started(self, at: EntryId) -> bytes:
        """A later attempt begins in mid-sentence: the client must not notice."""
        if self._begun:
            return b""
        self._begun = True
        last = self._spec.choices - 1
        return b"".join(
            frame(self._chunk([_choice(i, {"role": "assistant", "content": ""})]), at if i == last else None)
            for i in range(self._spec.choices)
        )

    def _delta(self, at: EntryId, entry: Delta) -> bytes:
        if not entry.logprobs and not self._calls:
            return self._text(at, entry.choice, entry.text)
        wanted = self._spec.sampling.logprobs is not None and entry.logprobs
        logprobs = chat_logprobs(entry.logprobs or ()) if wanted else None
        if self._calls:
            deltas = self._read(entry.choice, self._calls[entry.choice].push(entry.text))
        else:
            deltas = [{"content": entry.text}] if entry.text else []
        if not deltas and logprobs is not None:
            deltas = [{"content": ""}]
        choices = [_choice(entry.choice, delta) for delta in deltas]
        if choices:
            choices[-1]["logprobs"] = logprobs
        last = len(choices) - 1
        return b"".join(frame(self._chunk([row]), at if i == last else None) for i, row in enumerate(choices))

    def _read(self, choice: int, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        """What a piece of text said and called, as deltas."""
        deltas: list[dict[str, Any]] = []
        for piece in pieces:
            match piece:
                case Said():
                    deltas.append({"content": piece.text})
                case Called():
                    call = {"index": piece.index, **call_object(self._spec.id, choice, piece)}
                    deltas.append({"tool_calls": [call]})
                case Argued():
                    call = {"index": piece.index, "function": {"arguments": piece.text}}
                    deltas.append({"tool_calls": [call]})
        return deltas

    def _rest(self, choice: int) -> bytes:
        """What was held back because it might have become a call. It has the id of nothing: the end follows at once."""
        if not self._calls:
            return b""
        deltas = self._read(choice, self._calls[choice].finish())
        return b"".join(frame(self._chunk([_choice(choice, delta)])) for delta in deltas)

    def _finish(self, choice: int, finish: str | None) -> dict[str, Any]:
        calls = self._calls[choice].count if self._calls else 0
        return _choice(choice, {}, None, finish_reason(finish, calls))


def _choice(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


class CompletionChunks(_Chunks):
    """text_completion events."""

    object = "text_completion"

    def __init__(self, spec: JobSpec, created: int) -> None:
        super().__init__(spec, created)
        self._logprobs = [CompletionLogprobs() for _ in range(spec.choices)]
        self.shape = "completion" if spec.sampling.logprobs is None else ""

    def _choice(self, index: int, text: str) -> dict[str, Any]:
        return _text(index, text, None)

    def frames(self, at: EntryId, entry: Entry) -> bytes:
        """Text, finish and usage chunks."""
        match entry:
            case Started():
                return b""
            case Delta():
                if self._spec.sampling.logprobs is None or not entry.logprobs:
                    return self._text(at, entry.choice, entry.text)
                self._logprobs[entry.choice].add(entry.logprobs)
                logprobs = self._logprobs[entry.choice].take()
                return frame(self._chunk([_text(entry.choice, entry.text, logprobs)]), at)
            case ChoiceEnd():
                return frame(self._chunk([_text(entry.choice, "", None, finish_reason(entry.finish))]), at)
            case End():
                if entry.choice is None:
                    return self._end(at, entry, None)
                return self._end(at, entry, _text(entry.choice, "", None, finish_reason(entry.finish)))


def _text(index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


class JobEvents:
    """The log itself, for /v1/jobs/{id}/events: `event:` is the kind of the entry, the terminal one has the usage."""

    shape = "job"
    joins = False

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec

    def frames(self, at: EntryId, entry: Entry) -> bytes:
        """One event per entry, those without text included."""
        match entry:
            case Started():
                return frame({"attempt": entry.attempt, "tokens": entry.tokens}, at, "started")
            case Delta():
                data: dict[str, Any] = {
                    "choice": entry.choice,
                    "index": entry.index,
                    "tokens": len(entry.tokens),
                    "text": entry.text,
                }
                if entry.logprobs is not None:
                    data["logprobs"] = chat_logprobs(entry.logprobs)["content"]
                return frame(data, at, "delta")
            case ChoiceEnd():
                return frame({"choice": entry.choice, "finish_reason": finish_reason(entry.finish)}, at, "choice_end")
            case End():
                return frame(self._end(entry), at, "end")

    def error(self, error: PenstockError) -> bytes:
        """The stream ends, the job may go on: the client can come back with its last id."""
        hint = b"retry: 1000\n" if error.code is ErrorCode.SERVER_SHUTDOWN else b""
        return hint + frame(error_object(error), None, "error")

    def close(self) -> bytes:
        """Nothing: `end` or `error` was the last event."""
        return b""

    def _end(self, end: End) -> dict[str, Any]:
        succeeded = end.state == JobState.SUCCEEDED
        error = None if succeeded else error_object(failure(end.code, end.message, end.state))["error"]
        return {
            "state": end.state,
            "choice": end.choice,
            "finish_reason": finish_reason(end.finish) if succeeded else None,
            "usage": usage(self._spec.prompt_tokens, end.tokens),
            "error": error,
        }
