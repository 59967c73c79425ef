"""A request as SkyPilot's own task, spread by SkyServe's spot placer where that has a choice.

The placer sends each replica to a zone of its own, and away from one that had no room. Of two zones it never leaves
the first (sky/serve/spot_placer.py, set_preemptive: one zone that is left is none): there SkyPilot looks in all of
them at each launch, cheapest first, without the placer.
"""

from __future__ import annotations

from typing import Any, Final

from tuna_nb.backends.base import ServiceRequest
from tuna_nb.backends.skyserve import task as tasks
from tuna_nb.backends.skyserve.prices import ACCELERATORS

LEAST_PLACES: Final = 3


def made(sky: Any, request: ServiceRequest, secrets: list[tuple[str, str]]) -> Any:
    """A sky.Task. Takes seconds at first: it reads the catalog. Raises ValueError where SkyPilot refuses it."""

    def task(*, placed: bool) -> Any:
        config = tasks.config(request, ACCELERATORS[request.gpu], placed=placed)
        return sky.Task.from_yaml_config(config, secrets_overrides=secrets)

    plain = task(placed=False)
    return task(placed=True) if _places(plain) >= LEAST_PLACES else plain


def _places(task: Any) -> int:
    """How many zones the placer would choose from: as it finds out itself, for which there is no public way."""
    from sky.serve import spot_placer

    try:
        return len(spot_placer._get_possible_location_from_task(task))
    except (AttributeError, ValueError):
        return 0  # another SkyPilot; or several places and a docker image, which it takes for different resources
