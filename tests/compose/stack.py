"""The stack of compose.yaml, brought up on this machine's loopback.

Everything is as compose.yaml says but for the network: each container uses the host's, listens on 127.0.0.1 only and on a
free port, so that nothing leaves this machine and nothing that runs here is in the way. An override file cannot take
published ports back, so this writes a whole one.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tests.compose.daemon import NoDocker, run
from tests.processes import free_port

ROOT = Path(__file__).parents[2]
PROJECT = "penstock-test"
BUILD_S, UP_S, DOWN_S, HEALTHY_S = 1500, 180, 120, 240
#: A container that ended so often does not come up.
RESTARTS = 4


def base_images() -> tuple[str, ...]:
    """The images of others that ours are built from and run beside."""
    dockerfile = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    froms = re.findall(r"^FROM (\S+:\S+)", dockerfile, re.MULTILINE)
    return (*froms, *(service["image"] for service in services if "build" not in service))


class Stack:
    """One run of the stack. `env` is an environment in which docker works, `folder` is for the file it writes."""

    def __init__(self, env: Mapping[str, str], folder: Path) -> None:
        self.env = {**env, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0", "PENSTOCK_THREADS": "1"}
        self._plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
        if not self._plugin and shutil.which("docker-compose") is None:
            raise NoDocker("neither `docker compose` nor docker-compose is installed")
        self.redis_port, self.api_port, self.flower_port = free_port(), free_port(), free_port()
        self.file = folder / "compose.yaml"
        config = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
        self._use_loopback(config["services"])
        self.file.write_text(yaml.safe_dump(config), encoding="utf-8")

    @property
    def api_url(self) -> str:
        """Where the API listens."""
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def flower_url(self) -> str:
        """Where Flower listens."""
        return f"http://127.0.0.1:{self.flower_port}"

    def compose(self, *arguments: str, timeout: float = UP_S, files: tuple[Path, ...] = ()) -> str:
        """Run compose, the plug-in where there is one, on the stack's file or on `files`."""
        program = ["docker", "compose"] if self._plugin else ["docker-compose"]
        options = [part for file in files or (self.file,) for part in ("-f", str(file))]
        where = ["--project-name", PROJECT, "--project-directory", str(ROOT)]
        return run(*program, *options, *where, *arguments, timeout=timeout, env=self.env)

    def docker(self, *arguments: str, timeout: float = 60) -> str:
        """Run docker."""
        return run("docker", *arguments, timeout=timeout, env=self.env)

    def container(self, service: str) -> str:
        """The id of a service's container, which may have ended."""
        label = f"label=com.docker.compose.service={service}"
        project = f"label=com.docker.compose.project={PROJECT}"
        return self.docker("ps", "--all", "--quiet", "--filter", label, "--filter", project).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        """What Docker says of a service's container."""
        return dict(json.loads(self.docker("inspect", self.container(service)))[0])

    def inside(self, service: str, *argv: str) -> str:
        """Run a program in a service's container."""
        return self.docker("exec", self.container(service), *argv)

    def wait_healthy(self, *services: str) -> None:
        """Until all of them are healthy. Raises RuntimeError with their logs if that takes too long or one keeps dying."""
        end = time.monotonic() + HEALTHY_S
        while True:
            seen = {name: self.inspect(name) for name in services}
            ill = {name: seen[name] for name in services if not _is_well(seen[name]["State"])}
            if not ill:
                return
            if time.monotonic() > end or any(one["RestartCount"] > RESTARTS for one in ill.values()):
                checks = {name: one["State"].get("Health", {}).get("Log", [])[-1:] for name, one in ill.items()}
                raise RuntimeError(f"not healthy: {checks}\n{self.logs(*ill)}")
            time.sleep(0.5)

    def logs(self, *services: str) -> str:
        """The end of what the services wrote."""
        return self.compose("logs", "--no-color", "--tail", "60", *services)

    def down(self) -> None:
        """Take everything down, with the volumes."""
        self.compose("down", "--volumes", "--remove-orphans", timeout=DOWN_S)

    def _use_loopback(self, services: dict[str, Any]) -> None:
        for service in services.values():
            service.pop("ports", None)
            service["network_mode"] = "host"
            if "build" in service:
                service["build"]["network"] = "host"
                service["environment"]["PENSTOCK_REDIS_URL"] = f"redis://127.0.0.1:{self.redis_port}/0"
        port = str(self.redis_port)
        services["redis"]["command"] += ["--bind", "127.0.0.1", "--port", port]
        services["redis"]["healthcheck"]["test"] += ["-p", port]
        ping = services["redis"]["healthcheck"]["test"]
        ping.append(ping.pop(ping.index("ping")))
        services["api"]["environment"] |= {"PENSTOCK_HOST": "127.0.0.1", "PENSTOCK_PORT": str(self.api_port)}
        services["flower"]["environment"] |= {"FLOWER_ADDRESS": "127.0.0.1", "FLOWER_PORT": str(self.flower_port)}


def _is_well(state: Mapping[str, Any]) -> bool:
    return bool(state["Running"]) and state.get("Health", {}).get("Status") == "healthy"
