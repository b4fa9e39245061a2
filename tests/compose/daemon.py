"""A Docker daemon for the container tests: the one that runs here, else one of our own.

Our own has its data root, socket and pid file in one folder, no bridge and no iptables, and is stopped by its pid; the
folder is kept, so the next run finds its images and layers. Where we start the daemon we expect no image registry either,
so the images that the Dockerfile and compose.yaml name are made from Debian's packages, with this machine's pip settings
inside: they stay on this machine and out of the repository.
"""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

FOLDER = Path(os.environ.get("COMPOSE_TEST_DIR", Path(tempfile.gettempdir()) / "penstock-compose"))
START_S, BASE_S = 60, 1200
PACKAGES = ("python3", "python3-venv", "python3-pip", "ca-certificates", "redis-server", "redis-tools")


class NoDocker(Exception):
    """No daemon runs and none can be started; the message says what to install."""


def run(*argv: str | Path, timeout: float, env: Mapping[str, str] | None = None) -> str:
    """Run a program and return its standard output. Raises RuntimeError with the end of what it wrote."""
    done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, timeout=timeout, env=env)
    if done.returncode:
        tail = (done.stdout + done.stderr)[-4000:]
        raise RuntimeError(f"{' '.join(map(str, argv))}: exit code {done.returncode}\n{tail}")
    return done.stdout


def usable(env: Mapping[str, str]) -> bool:
    """Whether the docker client reaches a daemon."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(["docker", "info"], capture_output=True, timeout=30, env=env).returncode == 0
    return False


@contextlib.contextmanager
def docker_daemon(images: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """An environment in which `docker` works and each of `images` can be had; ends what it started."""
    env = dict(os.environ)
    if usable(env):
        yield env
        return
    if os.geteuid() != 0 or not all(map(shutil.which, ("docker", "dockerd", "debootstrap"))):
        raise NoDocker("no Docker daemon answers; starting one takes root and Debian's docker.io and debootstrap")
    env["DOCKER_HOST"] = f"unix://{FOLDER}/docker.sock"
    settings = _pip_settings()
    if settings.keys() & {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"}:
        env["TORCH_INDEX"] = ""  # pip is told where packages are: torch is there too
    daemon = _start(env)
    try:
        for image in images:
            _make_base(image, images[0], settings, env)
        yield env
    finally:
        daemon.terminate()
        daemon.wait(60)
        # dockerd leaves this mount, and then the folder could not be removed
        subprocess.run(["umount", str(FOLDER / "exec/netns/default")], capture_output=True, timeout=30)


def _start(env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    if usable(env):
        pid = (FOLDER / "docker.pid").read_text()
        raise NoDocker(f"another run uses {FOLDER} (dockerd has pid {pid}): wait for its end, or set COMPOSE_TEST_DIR")
    paths = ["--data-root", FOLDER / "data", "--exec-root", FOLDER / "exec", "--pidfile", FOLDER / "docker.pid"]
    network = ["--bridge=none", "--iptables=false", "--ip6tables=false"]
    leash = ["setpriv", "--pdeathsig", "TERM"]  # it ends with us, however we end
    argv = [*leash, "dockerd", "--host", env["DOCKER_HOST"], *map(str, paths), *network]
    with (FOLDER / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + START_S
    while not usable(env):
        if daemon.poll() is not None or time.monotonic() > end:
            daemon.kill()
            raise NoDocker(f"dockerd does not start: {(FOLDER / 'dockerd.log').read_text()[-2000:]}")
        time.sleep(0.5)
    return daemon


def _make_base(image: str, first: str, settings: Mapping[str, str], env: Mapping[str, str]) -> None:
    """Make one base image, unless it is there: Debian with Python and Redis serves as each of them."""
    if subprocess.run(["docker", "image", "inspect", image], capture_output=True, env=env).returncode == 0:
        return
    if image != first:
        run("docker", "tag", first, image, timeout=60, env=env)
        return
    root = Path(tempfile.mkdtemp(prefix="root-", dir=FOLDER))
    try:
        include = f"--include={','.join(PACKAGES)}"
        run("nice", "debootstrap", "--variant=minbase", include, "bookworm", root, timeout=BASE_S)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        _copy_named(settings, root)
        changes = [part for name, value in settings.items() for part in ("--change", f"ENV {name}={value}")]
        imported = ["docker", "import", *changes, "-", image]
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(imported, stdin=tar.stdout, env=env, check=True, timeout=300)
    finally:
        shutil.rmtree(root)


def _pip_settings() -> dict[str, str]:
    """This machine's pip settings, as variables."""
    settings = {}
    for line in run(sys.executable, "-m", "pip", "config", "list", timeout=60).splitlines():
        name, _, value = line.partition("=")
        settings["PIP_" + name.rpartition(".")[2].upper().replace("-", "_")] = str(ast.literal_eval(value))
    extra = settings.pop("PIP_EXTRA_INDEX_URL", "").split()
    # an index in a local folder is too large to copy; what it adds must come from the others
    if remote := [url for url in extra if not url.startswith("file:")]:
        settings["PIP_EXTRA_INDEX_URL"] = " ".join(remote)
    return settings


def _copy_named(settings: Mapping[str, str], root: Path) -> None:
    """Copy the files and folders that the settings name (certificates, wheels) to the same place under `root`."""
    for value in " ".join(settings.values()).split():
        source, target = Path(value), root / value.lstrip("/")
        if source.is_absolute() and source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.is_absolute() and source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
