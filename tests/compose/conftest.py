"""The containers' tests run by `make test-compose` only: they need Docker, gigabytes and minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.compose.daemon import NoDocker, docker_daemon
from tests.compose.stack import BUILD_S, Stack, base_images

if "TEST_COMPOSE" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack, built and up; taken down at the end, with its daemon if that is ours."""
    try:
        with docker_daemon(base_images()) as env:
            stack = Stack(env, tmp_path_factory.mktemp("compose"))
            stack.down()  # what a run that was killed left
            stack.compose("build", timeout=BUILD_S)
            try:
                stack.compose("up", "--detach", "--no-build")
                yield stack
            finally:
                stack.down()
    except NoDocker as error:
        pytest.fail(str(error), pytrace=False)
