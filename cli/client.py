"""The API as the command line uses it: plain HTTP, and one stream that survives broken connections.

Every failure becomes an `ApiError` with one clear sentence; nothing here prints.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self, cast

import httpx

from cli.plan import reachable
from tasks.errors import PenstockError
from tasks.settings import load_settings

#: How long a broken stream is taken up again before giving up: an API that is restarted is back in seconds.
RESUME_S = 60.0
PAUSE_S = 0.5
TERMINAL = ("succeeded", "failed", "cancelled")


class ApiError(PenstockError):
    """The API cannot be reached, or refused; `status` is 0 in the first case."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True)
class InLine:
    """The job waits; what the API said about its place."""

    place: str


@dataclass(frozen=True)
class Resumed:
    """The connection broke and the stream goes on where it was."""


def default_url() -> str:
    """The API that this folder's `penstock up` runs, else the one that the settings name."""
    settings = load_settings()
    written = settings.data_dir / "api.url"
    if written.is_file():
        return written.read_text().strip()
    return f"http://{reachable(settings.host)}:{settings.port}"


class Client:
    """One API. Use as a context manager."""

    def __init__(self, url: str = "") -> None:
        self.url = (url or default_url()).rstrip("/").removesuffix("/v1")
        timeout = httpx.Timeout(30.0, connect=5.0)
        try:
            self._http = httpx.Client(base_url=self.url, timeout=timeout, trust_env=False)
        except httpx.InvalidURL as error:
            raise ApiError(f"{self.url} is no URL: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """GET a JSON object."""
        return self._object(self._request("GET", path, params=params))

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """POST a JSON object."""
        return self._object(self._request("POST", path, json=body))

    def metrics(self) -> str:
        """The text of /metrics."""
        return self._request("GET", "/metrics").text

    def model(self, name: str) -> str:
        """The model to use: `name`, or the first that is served."""
        if name:
            return name
        models = self.get("/v1/models")["data"]
        if not models:
            raise ApiError(f"{self.url} serves no model")
        return str(models[0]["id"])

    def chat(self, body: dict[str, Any]) -> ChatStream:
        """Start a chat whose answer is kept, so that its stream can be taken up again."""
        return ChatStream(self._http, self.url, body | {"stream": True, "store": True})

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        try:
            return cast(dict[str, Any], response.json())
        except ValueError:
            raise ApiError(f"{response.request.url} answers with no JSON: is {self.url} Penstock?") from None

    def _request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **kwargs)
        except httpx.HTTPError as error:
            raise unreachable(self.url, error) from None
        if response.is_error:
            raise refused(response)
        return response


class ChatStream:
    """One answer as it is made. Iterate it once; `job` is its id as soon as the API accepted it."""

    def __init__(self, http: httpx.Client, url: str, body: dict[str, Any]) -> None:
        self._http = http
        self._url = url
        self._body = body
        self._last = ""
        self._done = False
        self.job = ""

    def __iter__(self) -> Iterator[Text | InLine | Resumed]:
        began = time.monotonic()
        while not self._done:
            try:
                with self._open() as response:
                    if response.is_error:
                        response.read()
                        self._give_up_unless_passing(response, began)
                        continue
                    self.job = response.headers.get("x-penstock-job-id", self.job)
                    for event in self._events(response):
                        began = time.monotonic()
                        yield event
            except httpx.HTTPError as error:
                if not self.job:
                    raise unreachable(self._url, error) from None
                if time.monotonic() - began > RESUME_S:
                    text = f"the answer broke off, and nothing answered at {self._url} for {RESUME_S:.0f} s"
                    raise ApiError(text) from None
            if not self._done:
                if not self.job or time.monotonic() - began > RESUME_S:
                    raise ApiError(f"{self._url} ended the stream before the answer was complete")
                yield Resumed()
                time.sleep(PAUSE_S)

    def cancel(self) -> None:
        """Stop the answer, if it was accepted."""
        if self.job:
            self._http.post(f"/v1/jobs/{self.job}/cancel")

    def _open(self) -> Any:
        timeout = httpx.Timeout(30.0, connect=5.0)  # the API is never silent longer than its keep-alive of 15 s
        if not self.job:
            return self._http.stream("POST", "/v1/chat/completions", json=self._body, timeout=timeout)
        headers = {"last-event-id": self._last} if self._last else {}
        path = f"/v1/chat/completions/{self.job}"
        return self._http.stream("GET", path, params={"stream": "true"}, headers=headers, timeout=timeout)

    def _give_up_unless_passing(self, response: httpx.Response, began: float) -> None:
        """A refused resume may pass (Redis or the API restarts); a refused request is final."""
        if not self.job or response.status_code != 503 or time.monotonic() - began > RESUME_S:
            raise refused(response)
        time.sleep(PAUSE_S)

    def _events(self, response: httpx.Response) -> Iterator[Text | InLine]:
        for line in response.iter_lines():
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "" and value.startswith("queued"):
                yield InLine(value.removeprefix("queued "))
            elif field == "id":
                self._last = value
            elif field == "data" and value == "[DONE]":
                self._done = True
                return
            elif field == "data" and value:
                chunk = json.loads(value)
                if (chunk.get("error") or {}).get("code") == "server_shutdown":
                    return  # a break like any other: the job goes on without its server
                yield from self._chunk(chunk)

    def _chunk(self, chunk: dict[str, Any]) -> Iterator[Text]:
        if chunk.get("error"):
            raise ApiError(str(chunk["error"]["message"]), 200)
        self.job = self.job or chunk["id"]
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                yield Text(text)


def refused(response: httpx.Response) -> ApiError:
    """What the API said, as one sentence."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"{response.request.method} {response.request.url.path}: HTTP {response.status_code}"
    return ApiError(message, response.status_code)


def unreachable(url: str, error: Exception) -> ApiError:
    """Why there is no answer, and what to do."""
    if isinstance(error, httpx.ConnectError):
        return ApiError(f"nothing answers at {url}: start it with `penstock up`, or give --url")
    return ApiError(f"{url}: {type(error).__name__}: {error}")


def is_terminal(job: dict[str, Any]) -> bool:
    """Whether a job has ended."""
    return job["state"] in TERMINAL
