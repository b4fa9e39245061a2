"""The engines, as fixtures of the contract suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.engines import NAMES, VLLM, Rig, make

#: What is about one engine alone.
collect_ignore = ["test_parity.py"] if VLLM else ["test_vllm.py", "test_vllm_worker.py"]


@pytest.fixture(scope="module", params=NAMES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """One engine for all tests of a file; each test leaves it empty."""
    rig = make(request.param)
    yield rig
    rig.engine.close()


@pytest.fixture(params=NAMES)
def fresh(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """An engine of its own, for tests that break it."""
    rig = make(request.param)
    yield rig
    rig.engine.close()


@pytest.fixture
def able(rig: Rig) -> Rig:
    """The engines that can bind an answer to a grammar."""
    if not rig.engine.profile.structured:
        pytest.skip("this engine has no grammars")
    return rig
