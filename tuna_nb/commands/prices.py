"""`show-gpus`: what GPUs cost, where, all in, and how old each price is."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Final

from tuna_nb.catalog import gpus, query
from tuna_nb.catalog.listing import PriceList, Seen
from tuna_nb.catalog.market import PATIENCE_S
from tuna_nb.catalog.offers import Offer, OfferKind, Shape
from tuna_nb.commands.context import Context
from tuna_nb.deployments import prices
from tuna_nb.errors import RequestError, did_you_mean

CLOUDS: Final = ("aws", "gcp", "azure")
_HISTORY_S: Final = 90 * 86400.0


async def show_gpus(options: Namespace, context: Context) -> PriceList:
    """Raises RequestError for a GPU, provider or number that can't be."""
    gpu = None if options.gpu is None else gpus.find(options.gpu).name
    wanted = _wanted(options, gpu)
    workspace, now = context.workspace, time.time()
    answers = await prices.market(workspace).ask(
        prices.sources(workspace, live=options.live, kinds=wanted.kinds or frozenset(OfferKind)),
        live=options.live,
        seller=options.provider,
        patience_s=options.timeout,
    )
    _known(options.provider, answers.offers)
    if answers.fresh:
        workspace.store.put_prices(prices.cheapest_seen(answers.fresh))
    found = query.select(answers.offers, wanted, now)
    history: tuple[Seen, ...] | None = None
    if options.history or options.chart == "history":
        history = tuple(
            Seen(r.at, r.provider, r.kind, r.gpu, r.region or None, r.price_per_hour_usd)
            for r in workspace.store.prices_seen(gpu, now - _HISTORY_S)
            if (not wanted.kinds or r.kind in wanted.kinds) and wanted.provider in (None, r.provider)
        )
    return PriceList(found.rows, found.total, wanted.shape, answers.reports, now, history)


async def offers(context: Context, *, live: bool = False) -> list[Offer]:
    """Every offer that is known, for what compares them itself."""
    workspace = context.workspace
    asked = prices.sources(workspace, live=live)
    return list((await prices.market(workspace).ask(asked, live=live, patience_s=PATIENCE_S)).offers)


def _wanted(options: Namespace, gpu: str | None) -> query.Wanted:
    for flag in ("min_vram", "max_price", "limit", "gpu_count", "cpus", "memory", "timeout"):
        value = getattr(options, flag)
        if value is not None and not 0 < value < float("inf"):
            raise RequestError(
                f"--{flag.replace('_', '-')} {value:g} is not above zero", "give a number above zero"
            )
    for flag in ("disk", "offset"):
        if not 0 <= getattr(options, flag) < float("inf"):
            raise RequestError(f"--{flag} {getattr(options, flag):g} is below zero", "give zero or more")
    clouds = frozenset({options.spots_cloud} if options.spots_cloud else ())
    kinds = {OfferKind(kind) for kind in options.kind}
    if options.spot or (clouds and not kinds):
        kinds |= {OfferKind.SERVERLESS, OfferKind.SPOT}
        clouds = clouds or frozenset({CLOUDS[0]})
    elif not kinds and options.provider is None and gpu is None and not (options.chart or options.explore):
        # Like the founding tools: what answers at once, until something else is asked for.
        kinds = {OfferKind.SERVERLESS}
    shape = None
    if options.cpus or options.memory or options.disk or options.gpu_count:
        count = options.gpu_count or 1
        shape = Shape(count, options.cpus or 8 * count, options.memory or 32 * count, options.disk)
    return query.Wanted(
        gpu=gpu,
        provider=options.provider,
        kinds=frozenset(kinds),
        spot_clouds=clouds,
        region=options.region,
        min_vram_gb=options.min_vram,
        max_price=options.max_price,
        gpu_count=options.gpu_count,
        shape=shape,
        by_all_in=options.all_in,
        sort=options.sort or ("all-in" if options.all_in and gpu else "price" if gpu else "gpu"),
        # Of one GPU every offer is worth a line; of all of them the cheapest of each seller.
        cheapest=not (gpu or options.region or options.every or options.explore or options.chart == "regions"),
        limit=options.limit,
        offset=options.offset,
    )


def _known(provider: str | None, found: tuple[Offer, ...]) -> None:
    known = {o.provider for o in found}
    if provider is not None and provider not in known:
        raise RequestError(f"no prices of a provider {provider!r} are known", did_you_mean(provider, known))
