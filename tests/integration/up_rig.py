"""`penstock up` on the scripted engine, in a data directory and on ports of its own, seen from outside."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from typer.testing import CliRunner, Result

from cli.main import app
from tests.processes import free_port

PENSTOCK = str(Path(sys.executable).parent / "penstock")
MODELS = """
[[model]]
name = "fake"
engine = "fake"
max_num_seqs = 4
"""


def wait_for(look: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """What `look` returns once it is true. Raises when it never is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def clean_environ(**environ: str) -> dict[str, str]:
    """The environment without settings of the machine that runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "REDIS_"))}
    return kept | environ


def penstock(folder: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [PENSTOCK, *args], cwd=folder, env=clean_environ(**environ), capture_output=True, text=True, timeout=30
    )


class Chat:
    """`penstock chat` on a terminal of its own."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._terminal, theirs = pty.openpty()
        name = os.ttyname(theirs)
        # a session leader's terminal becomes the one that controls it when it is opened, so Ctrl-C is a signal
        command = f'exec "$0" chat <{name} >{name} 2>&1'
        self.process = subprocess.Popen(
            ["sh", "-c", command, PENSTOCK], cwd=folder, env=environ | {"TERM": "xterm"}, start_new_session=True
        )
        self._theirs = theirs  # held open: until the child opens it there is nobody else at this end
        self.output = ""

    def __enter__(self) -> Chat:
        self.expect("> ")
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(5)
        os.close(self._terminal)
        os.close(self._theirs)

    def key(self, key: str) -> None:
        """Press a key."""
        os.write(self._terminal, key.encode())

    def say(self, line: str) -> None:
        """Type a line."""
        self.key(line + "\r")

    def expect(self, text: str) -> None:
        """Read until the terminal has shown `text`."""

        def shown() -> bool:
            while select.select([self._terminal], [], [], 0)[0]:
                try:
                    self.output += os.read(self._terminal, 65536).decode("utf-8", "replace")
                except OSError:  # the other end is closed
                    break
            return text in self.output

        try:
            wait_for(shown, text)
        except AssertionError:
            raise AssertionError(f"{text!r} never came: {self.output!r}") from None


class Up:
    """One data directory; `start` may be called again after the supervisor has ended."""

    def __init__(self, folder: Path, models: str = MODELS, *, flower: bool = False, **environ: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port, self.flower_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "models.toml").write_text(models)
        self._args = [] if flower else ["--no-flower"]
        self._environ = clean_environ(
            PENSTOCK_DATA_DIR=str(self.data),
            PENSTOCK_PORT=str(self.port),
            PENSTOCK_FLOWER_PORT=str(self.flower_port),
            PENSTOCK_LEASE_S="2",
            **environ,
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The supervisor."""
        assert self._process is not None
        return self._process

    @property
    def output(self) -> str:
        """What the last supervisor said."""
        return (self.folder / "out").read_text()

    def start(self) -> Up:
        """Start it and wait until it says that it is ready."""
        with (self.folder / "out").open("wb") as out:
            self._process = subprocess.Popen(
                [PENSTOCK, "up", *self._args], cwd=self.folder, env=self._environ, stdout=out, stderr=subprocess.STDOUT
            )
        wait_for(lambda: "Try it:" in self.output or self.process.poll() is not None, "ready", 60)
        assert self.process.poll() is None, self.output
        return self

    def children(self) -> dict[int, str]:
        """The command lines of the running children, by pid."""
        pid = self.process.pid
        found = {}
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            try:
                found[int(child)] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def pid_of(self, word: str) -> int:
        """The child whose command line holds `word`."""
        return wait_for(lambda: next((p for p, line in self.children().items() if word in line), 0), f"a {word}")

    def cli(self, *args: str) -> Result:
        """Another penstock command, in this process to save time."""
        done = CliRunner().invoke(app, args, env={"PENSTOCK_DATA_DIR": str(self.data)})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    def chat(self) -> Chat:
        """A chat with it on a terminal."""
        return Chat(self.folder, self._environ)

    def get(self, path: str) -> Any:
        """GET a JSON object, or None while nothing answers."""
        try:
            answer = httpx.get(self.url + path, timeout=5)
        except httpx.HTTPError:
            return None
        return answer.json() if answer.status_code == 200 else None

    def submit(self, text: str) -> str:
        """A job's id."""
        body = {"model": "fake", "messages": [{"role": "user", "content": text}]}
        answer = httpx.post(f"{self.url}/v1/jobs", json=body, timeout=10)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def result(self, job: str) -> str:
        """The answer of a job, once it has succeeded."""
        done = wait_for(lambda: self._if_ended(job), f"the end of {job}")
        assert done["state"] == "succeeded", done
        return str(done["output_text"])

    def _if_ended(self, job: str) -> Any:
        found = self.get(f"/v1/jobs/{job}")
        return found if found and found["state"] in ("succeeded", "failed", "cancelled") else None

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
