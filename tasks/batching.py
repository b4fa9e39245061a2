"""Calls of one script that arrive together travel together: one pipeline, one round trip, one answer per call.

Each call stays atomic by itself, and none of them waits on purpose: what arrives in one turn of the event loop leaves
at its end; what comes while a pipeline is on its way travels in the next one. So calls run in the order they came in.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

import redis.asyncio
import redis.exceptions
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

#: What one pipeline carries at most: Redis answers nobody else meanwhile.
MOST = 128


@dataclass(slots=True)
class _Call:
    args: tuple[Any, ...]
    answer: asyncio.Future[Any]


class Batching:
    """Calls one script, for concurrent callers of one event loop.

    Each gets its own answer or error. When the connection fails, every call of that pipeline fails with it; a call
    whose caller was cancelled before it left is not sent.
    """

    def __init__(self, client: redis.asyncio.Redis, script: AsyncScript) -> None:
        self._redis = client
        self._script = script
        self._waiting: deque[_Call] = deque()
        self._travelling: asyncio.Task[None] | None = None

    async def call(self, *args: Any) -> Any:
        """The script's answer to these arguments. Raises what redis-py raises."""
        loop = asyncio.get_running_loop()
        call = _Call(args, loop.create_future())
        self._waiting.append(call)
        if self._travelling is None:
            self._travelling = loop.create_task(self._travel())
        return await call.answer

    async def _travel(self) -> None:
        """Pipeline after pipeline, until nobody waits. As a task it starts when this turn of the event loop is over."""
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
                await self._carry([call for call in batch if not call.answer.done()])
        finally:
            self._travelling = None

    async def _carry(self, batch: list[_Call]) -> None:
        try:
            answers = await self._send(batch)
            unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if unknown:  # a Redis that was restarted: none of these ran
                await self._redis.script_load(self._script.script)
                again = await self._send([batch[i] for i in unknown])
                answers = [again.pop(0) if i in unknown else answer for i, answer in enumerate(answers)]
        except Exception as error:
            if isinstance(error, redis.exceptions.TimeoutError | TimeoutError):
                batch += self._waiting  # they would each wait as long
                self._waiting.clear()
            answers = [error] * len(batch)
        except asyncio.CancelledError:
            for call in (*batch, *self._waiting):
                call.answer.cancel()
            raise
        for call, answer in zip(batch, answers, strict=True):
            _give(call.answer, answer)

    async def _send(self, batch: list[_Call]) -> list[Any]:
        """One pipeline; an error that Redis answers to a call stands in the place of its answer."""
        pipe = self._redis.pipeline(transaction=False)
        for call in batch:
            pipe.execute_command("EVALSHA", self._script.sha, 0, *call.args)
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        return answers


def _give(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
