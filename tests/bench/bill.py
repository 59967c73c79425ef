"""The bill against the invoice: `python -m tests.bench.bill [SECONDS]` (7200 by default; a short day is less exact).

One accelerated day of traffic, diurnal and bursty with quiet nights, goes to four deployments on the local cloud at
once: a hybrid one behind its router, with preemptions and a router restart in the middle, and the three policies
that its bill compares itself with, run for real: serverless only, on-demand only, spot only. At the end:

- its bill against the local cloud's own invoice, in all and by backend (must: within 1 %);
- the same replicas seen only by looking every ten seconds, as with a provider that keeps no history (within 1 %, and
  by backend within the error that it states);
- what it says that the other policies would have cost, against what they did cost (within 2 %).
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import httpx

from tests.deployments.conftest import Told
from tests.deployments.leftovers import settings_of
from tests.deployments.lives import deploy, destroy, local, parts
from tuna_nb.backends.base import Engine, Kind, Ref, ServerlessScaling, ServiceRequest, SpotScaling
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.catalog.offers import Offer, OfferKind
from tuna_nb.commands.cost import bill_of
from tuna_nb.costs import account
from tuna_nb.costs.compare import compare
from tuna_nb.deployments import routers
from tuna_nb.deployments.connection import connection
from tuna_nb.deployments.keeping.watch import last_look, look
from tuna_nb.deployments.request import DeployRequest
from tuna_nb.deployments.workspace import Workspace

MODEL = "Qwen/Qwen3-0.6B"
SERVERLESS = ServerlessScaling(concurrency=4, scaledown_window=20, workers_max=3)
SPOT = SpotScaling(min_replicas=0, max_replicas=3, target_qps=0.6, upscale_delay=5, downscale_delay=30)
ON_DEMAND_USD = 0.71
OPTIONS = {
    "cold_start_s": "3", "boot_s": "12", "qps_window_s": "20",
    "decode_tokens_per_s": "30", "prefill_tokens_per_s": "4000",
}  # fmt: skip
LOOK_S = 10.0


class Looked(LocalBackend):
    """The local cloud as a provider that keeps no history."""

    name: ClassVar[str] = "local"
    tells_usage: ClassVar[bool] = False


def arrivals(seconds: float, seed: int = 11) -> list[float]:
    """Seconds from the begin: two humps a day, a burst now and then, a fifth of it silence."""
    dice = random.Random(seed)
    at, made = 5.0, []
    while at < seconds - 20:
        phase = at / seconds
        rate = max(0.0, math.sin(phase * 4 * math.pi)) * 1.2
        if 0.42 < phase < 0.58 or phase > 0.95:
            rate = 0.0
        if int(at / 97) % 7 == 3:
            rate *= 2.5  # a burst
        if rate <= 0.02:
            at += 1.0
            continue
        at += dice.expovariate(rate)
        made.append(at)
    return made


async def send(targets: list[tuple[str, dict[str, str]]], schedule: list[float], counted: dict[str, int]) -> None:
    """Every request to each of the targets, when it is due."""
    dice = random.Random(5)
    lengths = [dice.randint(10, 90) for _ in schedule]
    begun = time.monotonic()
    async with httpx.AsyncClient(trust_env=False, timeout=120, limits=httpx.Limits(max_connections=None)) as http:

        async def one(url: str, headers: dict[str, str], tokens: int) -> None:
            body = {
                "model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens,
                "min_tokens": tokens, "ignore_eos": True,
            }  # fmt: skip
            try:
                answer = await http.post(f"{url}/v1/chat/completions", json=body, headers=headers)
                word = str(answer.status_code)
            except httpx.HTTPError as e:
                word = type(e).__name__
            counted[f"{url} {word}"] = counted.get(f"{url} {word}", 0) + 1

        async with asyncio.TaskGroup() as group:
            for at, tokens in zip(schedule, lengths, strict=True):
                await asyncio.sleep(max(0.0, begun + at - time.monotonic()))
                for url, headers in targets:
                    group.create_task(one(url, headers, tokens))


async def alone(backend: LocalBackend, name: str, kind: Kind, price: str | None) -> tuple[Ref, str, dict[str, str]]:
    """One policy by itself: its endpoint and the headers that open it."""
    options = dict(OPTIONS)
    if price is not None:
        options["spot_price_per_hour_usd"] = price
    scaling = SERVERLESS if kind is Kind.SERVERLESS else SPOT
    request = ServiceRequest("bench", name, kind, Engine(MODEL), "L4", 1, scaling, options=options)
    endpoint = await backend.deploy(await backend.plan(request), lambda _text, _done: None)
    return endpoint.ref, endpoint.url, dict((await backend.auth(endpoint.ref)).headers)


def looking(folder: Path, workspace: Workspace, name: str) -> Workspace:
    """Another user's records of the same resources, who sees them only by looking."""
    made = Workspace(settings_of(folder / "looking"))
    made._backends["local"] = Looked(local(workspace).folder)
    record = workspace.store.deployment(name)
    rows = [
        {"role": r.role, "provider": r.provider, "name": r.name, "price_per_hour_usd": r.price_per_hour_usd}
        for r in workspace.store.resources(record.id)
        if r.role != "router"
    ]
    made.store.add_deployment(name, record.request, record.plan, rows, record.id)
    for resource in made.store.resources(record.id):
        made.store.update_resource(resource.id, state="created")
    return made


async def run(folder: Path, seconds: float) -> bool:
    workspace = Workspace(settings_of(folder / "data"))
    workspace._backends["local"] = LocalBackend(folder / "data" / "local-cloud")
    others = LocalBackend(folder / "others")
    schedule = arrivals(seconds)
    print(f"{len(schedule)} requests in {seconds:.0f} s", flush=True)
    request = DeployRequest(
        service_name="day", model=MODEL, gpu="L4", serverless_provider="local", spots_cloud="local",
        serverless=SERVERLESS, spot=SPOT, options=OPTIONS,
    )  # fmt: skip
    record = await deploy(workspace, request, until_spot=False)
    refs = {
        "serverless only": await alone(others, "sls", Kind.SERVERLESS, None),
        "on-demand only": await alone(others, "ond", Kind.SPOT, str(ON_DEMAND_USD)),
        "spot only": await alone(others, "spt", Kind.SPOT, None),
    }
    watching = looking(folder, workspace, "day")
    begun = time.time()
    link = await connection(workspace, workspace.store.deployment("day"))
    targets = [(link.base_url.removesuffix("/v1"), dict(link.headers))]
    targets += [(url, headers) for _, url, headers in refs.values()]
    counted: dict[str, int] = {}
    dice = random.Random(3)

    async def preempt() -> None:
        while True:
            await asyncio.sleep(dice.uniform(0.05, 0.15) * seconds)
            try:
                await local(workspace).cloud.preempt(parts(workspace, "day")["spot"].name, 0)
            except Exception as e:  # noqa: BLE001 - it has none at this moment
                print(f"no preemption: {e}", flush=True)

    async def watch() -> None:
        while True:
            await look(watching, watching.store.deployment("day"))
            await asyncio.sleep(LOOK_S)

    async def restart() -> None:
        await asyncio.sleep(0.5 * seconds)
        await routers.restart(workspace, workspace.store.deployment("day"), Told().report, upgrade=False)

    beside = [asyncio.create_task(job()) for job in (preempt, watch, restart)]
    await send(targets, schedule, counted)
    await asyncio.sleep(max(0.0, begun + seconds - time.time()))
    for job in beside:
        job.cancel()
    await asyncio.gather(*beside, return_exceptions=True)
    print("\n".join(f"{n:6} {what}" for what, n in sorted(counted.items())))
    # All is asked at one moment, while everything still runs.
    bill = await bill_of(workspace, record)
    now = bill.until
    offer = Offer("local", OfferKind.ON_DEMAND, "L4", ON_DEMAND_USD, None, now, "bench")
    compared = await asyncio.to_thread(compare, workspace.store, record, begun, now, offer)
    paid = {
        name: sum(i.usd for i in (await others.cloud.bill(ref.name)).intervals)
        for name, (ref, _, _) in refs.items()
    }
    names = {role: r.name for role, r in parts(workspace, "day").items()}
    invoice = {
        side: sum(i.usd for i in (await local(workspace).cloud.bill(name)).intervals)
        for side, name in names.items()
        if side != "router"
    }
    await look(watching, watching.store.deployment("day"))
    seen = account.bill(watching.store, [watching.store.deployment("day")], "day", 0.0, time.time())
    good = told("the bill, in all", bill.usd, sum(invoice.values()), 0.01)
    for side in bill.sides:
        if side.role in invoice:
            good &= told(f"the bill, {side.role}", side.usd, invoice[side.role], 0.01)
    good &= told("seen by looking, in all", seen.usd, sum(invoice.values()), 0.01)
    for side in seen.sides:
        # A container that lives for some looks only is known to within half of one: it says so.
        within = max(0.01, side.error_usd / invoice[side.role])
        good &= told(
            f"seen by looking, {side.role} (± ${side.error_usd:.4f})", side.usd, invoice[side.role], within
        )
    assert compared is not None
    for one in compared.versus:
        assert one.usd is not None
        good &= told(one.policy, one.usd, paid[one.policy], 0.02)
        print(f"      {one.note}")
    print(f"paid ${compared.usd:.4f}; {bill.requests} requests counted of {len(schedule) + 1} sent")
    await destroy(workspace, "day")
    for ref, _, _ in refs.values():
        await others.destroy(ref)
    for resource in watching.store.resources(record.id):
        await last_look(watching, record, resource, time.time())
    await others.cloud.shutdown(force=True)
    await local(workspace).cloud.shutdown(force=True)
    watching.close()
    workspace.close()
    return good


def told(what: str, ours: float, theirs: float, within: float) -> bool:
    off = ours / theirs - 1 if theirs else math.inf
    print(
        f"{'ok ' if abs(off) <= within else 'BAD'} {what}: ${ours:.5f} against ${theirs:.5f}: {off:+.2%}",
        flush=True,
    )
    return abs(off) <= within


def main(seconds: float) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return 0 if asyncio.run(run(Path(folder), seconds)) else 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 7200.0))
