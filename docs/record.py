"""Records `penstock chat` counting to 200 while its worker is killed twice: docs/kill-twice.cast and docs/kill-twice.svg.

Real processes in a real terminal (a pty): `penstock up` with the shipped models.toml on free ports, `penstock chat`
beside it, and SIGKILL to the worker whenever the answer comes to one of KILLS. It fails unless the answer on the screen
is exactly the numbers from 1 to 200. The .cast is asciicast v2 (https://docs.asciinema.org/manual/asciicast/v2/).

    python docs/record.py
"""

from __future__ import annotations

import fcntl
import html
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

DOCS = Path(__file__).parent
PENSTOCK = str(Path(sys.executable).parent / "penstock")
COLUMNS, ROWS = 84, 16
LAST = 200
KILLS = (70, 140)
LIMIT_S = 90
CSI = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")
#: Pieces of the picture that appear within this time appear together.
FRAME_S = 0.05
FONT, LINE = 8.4, 18


class Recording:
    """What the terminal showed and when; seconds since the start."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.output: list[tuple[float, str]] = []
        self.kills: list[tuple[float, str]] = []

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begun

    @property
    def text(self) -> str:
        """All output so far, without control sequences."""
        return CSI.sub("", "".join(data for _, data in self.output))

    def cast(self) -> str:
        """As asciicast v2; kills are markers."""
        header = {"version": 2, "width": COLUMNS, "height": ROWS}
        events = [(at, "o", data) for at, data in self.output] + [(at, "m", text) for at, text in self.kills]
        rows = [json.dumps(header), *(json.dumps([round(at, 3), kind, data]) for at, kind, data in sorted(events))]
        return "\n".join(rows) + "\n"


class Screen:
    """As much of a terminal as `penstock chat` uses: each cell's character, and since when it stands there."""

    def __init__(self) -> None:
        self.rows: list[dict[int, tuple[str, float]]] = [{}]
        self._row = self._column = 0

    def show(self, at: float, data: str) -> None:
        """Output at a moment."""
        while data:
            if sequence := CSI.match(data):
                self._obey(*sequence.groups())
                data = data[sequence.end() :]
                continue
            self._put(at, data[0])
            data = data[1:]

    def pieces(self) -> Iterator[tuple[int, int, str, float]]:
        """Row, column, text and time of what stands there at the end."""
        for number, row in enumerate(self.rows):
            start, text, since = 0, "", 0.0
            for column in range(COLUMNS):
                character, at = row.get(column, (" ", since))
                if text and at - since > FRAME_S:
                    yield number, start, text, since
                    start, text, since = column, "", at
                if not text:
                    start, since = column, at
                text += character
            if text.strip():
                yield number, start, text.rstrip(), since

    def _obey(self, parameters: str, command: str) -> None:
        if command == "K":
            self.rows[self._row] = {} if parameters == "2" else self.rows[self._row]
        elif command == "A":
            self._row = max(0, self._row - int(parameters or 1))

    def _put(self, at: float, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n" or self._column == COLUMNS:
            self._row, self._column = self._row + 1, 0
            if self._row == len(self.rows):
                self.rows.append({})
        if character == "\b":
            self._column = max(0, self._column - 1)
        elif character >= " ":
            self.rows[self._row][self._column] = (character, at)
            self._column += 1


def picture(recording: Recording) -> str:
    """An animated SVG of the recording, in its own time."""
    screen = Screen()
    for at, data in recording.output:
        screen.show(at, data)
    width, height = COLUMNS * FONT + 24, (len(screen.rows) + len(recording.kills)) * LINE + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-family="monospace" font-size="14">',
        '<rect width="100%" height="100%" rx="8" fill="#16181d"/>',
    ]

    def add(row: int, column: int, text: str, at: float, colour: str) -> None:
        shown = f'<set attributeName="visibility" to="visible" begin="{at:.2f}s"/>'
        place = f'x="{12 + column * FONT:.1f}" y="{26 + row * LINE}" textLength="{len(text) * FONT:.1f}"'
        parts.append(
            f'<text {place} fill="{colour}" visibility="hidden" xml:space="preserve">{html.escape(text)}{shown}</text>'
        )

    for row, column, text, at in screen.pieces():
        add(row, column, text, at, "#d7dae0")
    for number, (at, text) in enumerate(recording.kills):
        add(len(screen.rows) + number, 0, text, at, "#ff7b72")
    return "\n".join([*parts, "</svg>", ""])


@contextmanager
def pool(folder: Path) -> Iterator[str]:
    """A running pool; its URL."""
    settings = {"PENSTOCK_PORT": "0", "PENSTOCK_FLOWER_PORT": "0", "PENSTOCK_DATA_DIR": str(folder)}
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "REDIS_"))}
    process = subprocess.Popen(
        [PENSTOCK, "up"],
        cwd=DOCS.parent,
        env=environ | settings,
        stdout=subprocess.DEVNULL,
    )
    written = folder / "api.url"
    try:
        deadline = time.monotonic() + LIMIT_S
        while not is_ready(written):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the pool did not become ready")
            time.sleep(0.2)
        yield written.read_text().strip()
    finally:
        process.terminate()
        process.wait(20)


def is_ready(written: Path) -> bool:
    """Whether the pool takes requests; it writes its URL into this file when it starts."""
    try:
        return httpx.get(f"{written.read_text().strip()}/readyz", timeout=2).status_code == 200
    except (OSError, httpx.HTTPError):
        return False


def kill_worker(recording: Recording, url: str) -> None:
    """SIGKILL to the worker that serves the chat."""
    (card,) = httpx.get(f"{url}/v1/workers", timeout=5).json()["data"]
    os.kill(card["pid"], signal.SIGKILL)
    recording.kills.append((recording.now, f"{recording.now:5.1f} s  kill -9 {card['pid']}   # the worker"))


def record(url: str) -> Recording:
    """One chat in a terminal of its own."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(PENSTOCK, [PENSTOCK, "chat", "--url", url], os.environ | {"TERM": "xterm", "COLUMNS": str(COLUMNS)})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    recording = Recording()
    wanted = list(KILLS)
    to_type = [f"Count from 1 to {LAST}.\r", "/exit\r"]
    try:
        while recording.now < LIMIT_S and (data := read(terminal)) is not None:
            if data:
                recording.output.append((recording.now, data))
            if wanted and f", {wanted[0]}," in recording.text:
                wanted.pop(0)
                kill_worker(recording, url)
            if to_type and recording.text.endswith("\n> "):
                write_slowly(terminal, to_type.pop(0))
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
    return recording


def read(terminal: int) -> str | None:
    """What came, possibly nothing; None at the end."""
    if not select.select([terminal], [], [], 0.02)[0]:
        return ""
    try:
        return os.read(terminal, 65536).decode("utf-8", "replace")
    except OSError:  # how a pty says that its program has ended
        return None


def write_slowly(terminal: int, text: str) -> None:
    """As a person types."""
    for character in text:
        time.sleep(0.05)
        os.write(terminal, character.encode())


def main() -> None:
    """Record, check, write both files."""
    with tempfile.TemporaryDirectory() as folder, pool(Path(folder)) as url:
        recording = record(url)
    right = ", ".join(str(number) for number in range(1, LAST + 1))
    shown = recording.text.replace("\r", "").replace("\n", "")
    if right not in shown or len(recording.kills) != len(KILLS):
        raise SystemExit(f"{len(recording.kills)} kills, and the screen shows:\n{recording.text}")
    (DOCS / "kill-twice.cast").write_text(recording.cast())
    (DOCS / "kill-twice.svg").write_text(picture(recording))
    sys.stdout.write(f"{recording.now:.0f} s, {len(recording.kills)} kills, every number once\n")


if __name__ == "__main__":
    main()
