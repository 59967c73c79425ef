"""The rig for its tests: started once per way of running SkyServe's controllers, ended with everything in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.rig.product import Load, Service
from tests.rig.rig import Rig, environment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/rig/" in item.nodeid:
            item.add_marker(pytest.mark.rig)


@pytest.fixture(scope="session")
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """The rig, by the way that SkyServe's controllers run: `consolidated` in SkyPilot's server, as on an always-on
    host, or `controlled` on a machine of the cloud, as where the server is a laptop."""
    if "TUNA_RIG" not in os.environ:
        pytest.fail("the rig runs in namespaces of its own: make rig, or python -m tests.rig")
    # No other test may know of an account; these know the rig's, which is in its own home.
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(environment())
    running = Rig(consolidated=getattr(request, "param", "controlled") == "consolidated")
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def load(service: Service) -> Iterator[Load]:
    """Of a module's one service, all through a test; not one of its requests may fail."""
    with service.load() as running:
        yield running
    assert running.answers
    assert running.wrong == []
