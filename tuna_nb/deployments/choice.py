"""Which serverless provider: the cheapest that offers the GPU and passes its own check, and why not the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tuna_nb.backends import registry
from tuna_nb.backends.base import Backend, Kind, ServiceRequest
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.errors import RequestError, TunaError

ASK_S: Final = 20.0
"""A provider that has not told its price, or not passed its check, by then is passed over."""

CHECKS: Final = "`tuna check` shows what each provider needs; or name one with --serverless-provider"


@dataclass(frozen=True, slots=True)
class Choice:
    """price_per_hour_usd: of one container with all that is billed with its GPUs. passed_over: (provider, why)."""

    provider: str
    price_per_hour_usd: float | None
    passed_over: tuple[tuple[str, str], ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """For the plan's reader."""
        if self.price_per_hour_usd is None:
            return (f"on {self.provider}, since no provider of real GPUs is set up here (`tuna check`)",)
        why = f"{self.provider} is the cheapest that sells it and passes its check: ${self.price_per_hour_usd:.3f}"
        return (f"{why} an hour, all in", *(f"passed over: {name}: {reason}" for name, reason in self.passed_over))


async def choose(workspace: Workspace, gpu: str, request_for: Callable[[str], ServiceRequest]) -> Choice:
    """Ask every configured provider for its plan at once, then for its check, from the cheapest on.

    By what a container costs with all that is billed with it: a GPU that looks cheapest may come with dear CPUs.
    A provider whose resources are pretended (the local cloud) is taken only where no other is configured, and
    unasked: its plan says what is wrong. Ties go to the first name in the alphabet. Raises RequestError, with each
    provider's reason, where nobody is left.
    """
    passed_over: list[tuple[str, str]] = []
    real: list[tuple[str, Backend]] = []
    pretended: list[str] = []
    for name in registry.names():
        try:
            backend = workspace.backend(name)
            if Kind.SERVERLESS not in backend.kinds:
                continue
            if not backend.configured():
                passed_over.append((name, "not set up here"))
                continue
        except TunaError as e:
            passed_over.append((name, e.message))
            continue
        if backend.pretends:
            pretended.append(name)
        else:
            real.append((name, backend))
    if pretended and not real:
        return Choice(pretended[0], None, tuple(passed_over))
    priced: list[tuple[float, str, Backend]] = []
    found_prices = await asyncio.gather(*(_price(backend, request_for(name)) for name, backend in real))
    for (name, backend), found in zip(real, found_prices, strict=True):
        if isinstance(found, str):
            passed_over.append((name, found))
        else:
            priced.append((found, name, backend))
    for price, name, backend in sorted(priced, key=lambda one: one[:2]):
        trouble = await _trouble(backend, request_for(name))
        if trouble is None:
            dearer = [(other, f"${usd:.3f}") for usd, other, _ in sorted(priced, key=lambda one: one[:2])]
            later = dearer[dearer.index((name, f"${price:.3f}")) + 1 :]
            return Choice(name, price, tuple(passed_over + later))
        passed_over.append((name, trouble))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over)
    raise RequestError(f"no serverless provider can serve {gpu} ({reasons or 'none is installed'})", CHECKS)


async def _price(backend: Backend, request: ServiceRequest) -> float | str:
    """USD per hour of one container, all in; or why there is none."""
    try:
        async with asyncio.timeout(ASK_S):
            plan = await backend.plan(request)
    except TimeoutError:
        return f"no plan within {ASK_S:g} s"
    except RequestError as e:
        return e.message
    except TunaError as e:
        return f"could not be asked: {e.message}"
    return "its price is not known" if plan.price_per_hour_usd is None else plan.price_per_hour_usd


async def _trouble(backend: Backend, request: ServiceRequest) -> str | None:
    """The first thing that its check misses; None when all is well."""
    try:
        async with asyncio.timeout(ASK_S):
            rows = await backend.check(request)
    except TimeoutError:
        return f"its check did not end within {ASK_S:g} s"
    except TunaError as e:
        return e.message
    missing = next((row for row in rows if not row.passed), None)
    if missing is None:
        return None
    return f"{missing.name}: {missing.message}" + (f" ({missing.fix})" if missing.fix else "")
