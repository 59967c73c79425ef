"""Clouds' machines from the catalogue files that SkyPilot keeps on this machine, read as data.

SkyPilot itself is not imported: for these files alone that costs seven CPU-seconds. Its newest folder counts,
`~/.sky/catalogs/v8/<cloud>/vms.csv`, under SKY_RUNTIME_DIR where that is set. Spot and on-demand are two columns of
one row, a row for each zone. An on-demand price is its region's, so it is one offer for all zones with that price;
spot prices differ by zone.

The files are megabytes, so that what was read of each is kept as offers, in memory and in the data folder, as long
as the file stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import functools
import hashlib
import math
import operator
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

from tuna_nb.catalog import gpus, kept
from tuna_nb.catalog.offers import INCLUDED, Lines, Offer, OfferKind, believable
from tuna_nb.catalog.rules import rule
from tuna_nb.catalog.sources import clouds
from tuna_nb.catalog.sources.base import MACHINES, Source, changed
from tuna_nb.errors import BackendError, SettingsError
from tuna_nb.settings import Settings

MARKETS: Final = frozenset({"runpod"})
"""Machines there are pods of a marketplace, not a cloud's."""
LEFT_OUT: Final = frozenset({"common", "kubernetes", "ssh", "slurm", "vast", "shadeform", "primeintellect"})
"""Not clouds; markets whose offers are gone long before SkyPilot reads its file anew; resellers of the others."""
_NEEDED: Final = frozenset({"AcceleratorName", "AcceleratorCount", "Price", "Region"})
_LAYOUT: Final = 1
"""Of what is made of a row. Counted up when that changes, so that no copy of before is read."""
_OPTIONAL: Final = ("SpotPrice", "AvailabilityZone", "InstanceType", "vCPUs", "MemoryGiB")
_GPU_INFO: Final = re.compile(r'"\{[^"]*\}"')
"""Most of a row's length, and what it says of memory is by the GPU at one cloud and by the machine at the next."""
_VERSION: Final = re.compile(r"v(\d+)")
_HOST_APART: Final = Lines(None, None, None)
"""Google lists a GPU and the machine that holds it in rows of their own, and does not say which goes with which."""


class _Machine(NamedTuple):
    """What rows of one file have in common whichever zone and price they are of, as the file has it."""

    name: str
    gpu: str
    gpus: int
    vcpus: str
    memory_gib: str
    region: str


class SkyPilotFiles(Source):
    """Nothing where SkyPilot has no files: it is not missed by who does not use it.

    environ: where SKY_RUNTIME_DIR, HOME and TUNA_DATA_DIR are looked up.
    """

    name = "skypilot"
    kinds: ClassVar[frozenset[OfferKind]] = MACHINES
    local: ClassVar[bool] = True
    _kept: ClassVar[dict[Path, tuple[str, list[Offer]]]] = {}
    """What was read of a file, and of which state of it."""

    def __init__(self, *, environ: Mapping[str, str] | None = None) -> None:
        self._env = os.environ if environ is None else environ

    def lacks(self) -> str | None:
        return None if self._files() else "sky gpus list    # with SkyPilot, which then fetches its catalogues"

    async def fetch(self) -> list[Offer]:
        return await asyncio.to_thread(self._read_all)

    def observed_at(self, cloud: str) -> float | None:
        """When SkyPilot had that cloud's prices from there, Unix seconds; None where it has no file of them."""
        path = next((p for p in self._files() if p.parent.name == cloud), None)
        try:
            return None if path is None else min(path.stat().st_mtime, _fetched_at(path))
        except OSError:
            return None

    def _read_all(self) -> list[Offer]:
        return [offer for path in self._files() for offer in self._read(path)]

    def _files(self) -> list[Path]:
        """Of the newest version of the layout, one a cloud; none where there is no such folder."""
        home = self._env.get("SKY_RUNTIME_DIR") or self._env.get("HOME") or "~"
        folder = Path(home).expanduser() / ".sky" / "catalogs"
        try:
            versions = [entry for entry in folder.iterdir() if _VERSION.fullmatch(entry.name)]
        except OSError:
            return []
        for version in sorted(versions, key=lambda entry: -int(entry.name[1:])):
            files = sorted(version.glob("*/vms.csv"))
            if files:
                return [path for path in files if path.parent.name not in LEFT_OUT]
        return []

    def _read(self, path: Path) -> list[Offer]:
        try:
            stat = path.stat()
            observed_at = min(stat.st_mtime, _fetched_at(path))
            state = _digest(str(path), stat.st_mtime_ns, stat.st_size, observed_at)
            known = self._kept.get(path)
            if known is None or known[0] != state:
                known = self._kept[path] = (state, self._copy(path, state, observed_at))
        except (OSError, UnicodeDecodeError, csv.Error) as exc:
            raise BackendError(
                f"{self.name}: can't read {path}: {exc}", "remove it: SkyPilot fetches it anew"
            ) from exc
        return known[1]

    def _copy(self, path: Path, state: str, observed_at: float) -> list[Offer]:
        """As it was read before, else read now. observed_at: Unix seconds."""
        folder = Settings.load(self._env).data_dir / "prices" / self.name
        copy = folder / f"{path.parent.name}-{state}.json"
        if offers := list(kept.load(copy).offers):
            return offers
        offers = self._offers(path, observed_at)
        # It is only a copy: where there is no room for it, the file is read again the next time.
        with contextlib.suppress(OSError, SettingsError):
            Settings.load(self._env).data_folder("prices", self.name)
            for old in folder.glob(f"{path.parent.name}-*.json"):
                old.unlink(missing_ok=True)
            kept.save(copy, kept.Kept(tuple(offers), observed_at))
        return offers

    def _offers(self, path: Path, observed_at: float) -> list[Offer]:
        """observed_at: Unix seconds."""
        cloud = path.parent.name
        on_demand, spot = (
            (OfferKind.DEDICATED, OfferKind.INTERRUPTIBLE)
            if cloud in MARKETS
            else (OfferKind.ON_DEMAND, OfferKind.SPOT)
        )
        regional: dict[tuple[_Machine, float], list[str]] = {}
        quotes: list[tuple[_Machine, str, float]] = []
        silent: dict[tuple[_Machine, str], list[str]] = {}
        for machine, zone, price, spot_price in self._rows(path):
            if price is not None and price > 0:
                regional.setdefault((machine, price), []).append(zone)
            quote, note = believable(spot_price, price)
            if quote is None:
                silent.setdefault((machine, note), []).append(zone)
            else:
                quotes.append((machine, zone, quote))
        provider = clouds.named(cloud)
        source = f"SkyPilot catalogue {path.parent.parent.name}"
        billing = {kind: rule(provider, kind).billing for kind in (on_demand, spot)}

        def offer(machine: _Machine, zone: str, price: float | None, kind: OfferKind, note: str = "") -> Offer:
            return Offer(
                provider=provider,
                kind=kind,
                gpu=machine.gpu,
                price_per_hour_usd=None if price is None else price / machine.gpus,
                region=machine.region,
                observed_at=observed_at,
                source=source,
                gpu_count=machine.gpus,
                zone=zone or None,
                machine=machine.name or None,
                vcpus=_amount(machine.vcpus),
                memory_gib=_amount(machine.memory_gib),
                lines=INCLUDED if machine.name else _HOST_APART,
                billing=billing[kind],
                note=note,
            )

        return [
            *(offer(machine, _only(zones), price, on_demand) for (machine, price), zones in regional.items()),
            *(offer(machine, zone, price, spot) for machine, zone, price in quotes),
            *(offer(machine, _only(zones), None, spot, note) for (machine, note), zones in silent.items()),
        ]

    def _rows(self, path: Path) -> Iterator[tuple[_Machine, str, float | None, float | None]]:
        """The machine, the zone, and the prices in USD per hour of all of it, on demand and spot; of those that
        have whole GPUs known here."""
        with path.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader([file.readline()]), [])
            if lacking := _NEEDED - set(header):
                raise changed(self.name, f"{path} has no column {', '.join(sorted(lacking))}")
            wanted = ("AcceleratorName", "AcceleratorCount", "Region", "Price", *_OPTIONAL)
            # Which columns there are differs by cloud: the blank at the end stands for those that are not.
            which, *others = (header.index(name) if name in header else -1 for name in wanted)
            rest = operator.itemgetter(*others)
            # Most rows are machines without a GPU, and to split off a few fields is cheap.
            told = (_GPU_INFO.sub("", line) for line in file if _may_have_gpu(line, which))
            for fields in filter(None, csv.reader(told)):
                if len(fields) != len(header):
                    raise changed(self.name, f"{path} has a row of {len(fields)} fields, not {len(header)}")
                fields.append("")
                count, region, price, spot, zone, name, vcpus, memory = rest(fields)
                gpu, gpus_there = _gpu(fields[which]), _count(count)
                if gpu is not None and gpus_there is not None:
                    machine = _Machine(name, gpu, gpus_there, vcpus, memory, region)
                    yield machine, zone, _number(price), _number(spot)


def _only(zones: list[str]) -> str:
    """The one zone; blank for several."""
    return zones[0] if len(zones) == 1 else ""


def _may_have_gpu(line: str, which: int) -> bool:
    """Whether the field at that place is not blank, or can't be told without parsing."""
    fields = line.split(",", which + 1)
    return len(fields) <= which or bool(fields[which]) or '"' in line


def _fetched_at(path: Path) -> float:
    """When SkyPilot fetched it: where a fetch fails it touches the file, but not the sum that is kept beside it."""
    folder = path.parent.parent
    try:
        return (folder / ".meta" / path.parent.name / "vms.csv.md5").stat().st_mtime
    except OSError:
        return math.inf


@functools.lru_cache(64)
def _count(told: str) -> int | None:
    """None for slices of a GPU, of which it is a fraction."""
    found = _number(told)
    return None if found is None or found < 1 or found % 1 else int(found)


def _digest(*parts: object) -> str:
    """Of a file's state, and of all else on which the offers depend that are read of it."""
    return hashlib.sha256(repr((_LAYOUT, _gpus_known(), *parts)).encode()).hexdigest()[:16]


@functools.cache
def _gpus_known() -> int:
    return zlib.crc32(repr((gpus.GPUS, gpus.SPELLINGS["skypilot"])).encode())


def _number(told: str) -> float | None:
    """None for blank, and for what is no number, as an edited file may have it."""
    try:
        found = float(told)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


_amount = functools.lru_cache(512)(_number)


@functools.lru_cache(512)
def _gpu(name: str) -> str | None:
    gpu = gpus.identify(name, provider="skypilot")
    return None if gpu is None else gpu.name
