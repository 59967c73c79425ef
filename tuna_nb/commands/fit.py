"""`fit`: the memory that a model needs, which GPUs hold it, and what they cost."""

from __future__ import annotations

from argparse import Namespace

from tuna_nb.catalog import fit as fitting
from tuna_nb.catalog import gpus
from tuna_nb.catalog.fit import COMMON, FitList
from tuna_nb.catalog.models import config
from tuna_nb.catalog.models.memory import Wanted
from tuna_nb.commands import prices
from tuna_nb.commands.context import Context
from tuna_nb.errors import RequestError


async def fit(options: Namespace, context: Context) -> FitList:
    """Prices are those that are known here; nothing is asked of a provider.

    Without `--gpu`, of every GPU that some offer has and of the common ones. Raises RequestError.
    """
    wanted = Wanted(
        max_model_len=options.max_model_len,
        concurrency=options.concurrency,
        kv_cache_dtype=options.kv_cache_dtype,
        quantization=options.quantization,
        utilization=options.gpu_memory_utilization,
    )
    asked = gpus.find(options.gpu) if options.gpu is not None else None
    if options.tp_size is not None and options.tp_size < 1:
        raise RequestError(f"--tp-size is {options.tp_size}", "it must be at least 1")
    model = await config.find(options.model)
    known = await prices.offers(context)
    sold = {offer.gpu for offer in known} | set(COMMON)
    candidates = [asked] if asked is not None else [g for g in gpus.GPUS if g.name in sold]
    return fitting.fits(model, candidates, wanted, options.tp_size, known)
