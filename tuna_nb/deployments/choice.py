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
"""A provider that has not told its prices, or not passed its check, by then is passed over."""

CHECKS: Final = "`tuna check` shows what each provider needs; or name one with --serverless-provider"


@dataclass(frozen=True, slots=True)
class Choice:
    """price_per_hour_usd: of one GPU, as the provider's offer has it. passed_over: (provider, why)."""

    provider: str
    price_per_hour_usd: float
    passed_over: tuple[tuple[str, str], ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """For the plan's reader."""
        why = f"{self.provider} is the cheapest that sells it and passes its check: ${self.price_per_hour_usd:.3f}"
        return (f"{why} per GPU-hour", *(f"passed over: {name}: {reason}" for name, reason in self.passed_over))


async def choose(workspace: Workspace, gpu: str, request_for: Callable[[str], ServiceRequest]) -> Choice:
    """Ask every configured provider's prices at once, then checks from the cheapest on.

    A provider whose resources are pretended (the local cloud) is chosen only where no other is configured. Ties go
    to the first name in the alphabet. Raises RequestError, with each provider's reason, where nobody is left.
    """
    passed_over: list[tuple[str, str]] = []
    real: list[tuple[str, Backend]] = []
    pretended: list[tuple[str, Backend]] = []
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
        (pretended if backend.pretends else real).append((name, backend))
    priced: list[tuple[float, str, Backend]] = []
    for (name, backend), found in zip(
        real or pretended,
        await asyncio.gather(*(_price(backend, gpu) for _, backend in real or pretended)),
        strict=True,
    ):
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


async def _price(backend: Backend, gpu: str) -> float | str:
    """The lowest of its offers for one GPU; or why there is none."""
    try:
        async with asyncio.timeout(ASK_S):
            offers = await backend.prices()
    except TimeoutError:
        return f"no prices within {ASK_S:g} s"
    except TunaError as e:
        return f"could not be asked: {e.message}"
    fitting = [o.price_per_hour_usd for o in offers if o.kind is Kind.SERVERLESS and o.gpu == gpu]
    return min(fitting) if fitting else f"sells no {gpu}"


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
    return None if missing is None else f"{missing.name}: {missing.message}"
