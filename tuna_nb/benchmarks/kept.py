"""Runs kept in the data folder: `benchmarks/<name>/` with spec.json, rows.jsonl, report.json and report.html.

The folder and spec.json are made as a run begins, and its rows are written as they come, so that one whose process
is killed can be read to its last whole line. report.json comes last: without it a run was cut off, or is under way.
No header and no key is ever written. A sweep has a file of rows a step: rows-1.jsonl, rows-2.jsonl, ...
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, Final, TextIO

from tuna_nb.benchmarks import rows as rows_files
from tuna_nb.benchmarks.aiperf import Beside
from tuna_nb.benchmarks.load.spec import Arrivals, Lag, Lengths, LoadSpec, Prompts, Target
from tuna_nb.benchmarks.measures import Slo, measure
from tuna_nb.benchmarks.report import LoadReport, Mark, RunCost, Step
from tuna_nb.benchmarks.rows import Row
from tuna_nb.errors import ConflictError, NotFoundError, UsageError, did_you_mean
from tuna_nb.settings import Settings

FOLDER: Final = "benchmarks"
LOAD_TEST: Final = "load-test"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True, slots=True)
class KeptRun:
    """A line of the list. state: complete, interrupted, or unfinished (cut off, or under way). began_at: Unix
    seconds."""

    name: str
    kind: str
    state: str
    target: str
    models: tuple[str, ...]
    began_at: float
    requests: int | None = None
    failed: int | None = None
    ttft_p50_ms: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a run before its first request. levels: of a sweep, of what `sweep` says: rate or
    concurrency."""

    name: str
    spec: LoadSpec
    service: str | None
    slo: Slo | None
    sweep: str | None = None
    levels: tuple[float, ...] = ()


class Shelf:
    """The runs of one data folder."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def check(self, name: str) -> None:
        """Raises UsageError for what is no name, ConflictError for one that is taken. Makes nothing."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} can't name a run", "letters, digits, '.', '_' and '-', 80 at most")
        if (self._root / name).exists():
            raise ConflictError(
                f"there is a run named {name} already", f"`tuna benchmark show {name}` shows it; take another name"
            )

    def new_name(self, now: float, service: str | None) -> str:
        """A free one, by what is measured and the time."""
        word = re.sub(r"[^A-Za-z0-9-]+", "-", service or "url").strip("-")[:40] or "run"
        made = f"{word}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}"
        taken = sum(p.name == made or p.name.startswith(made + "-") for p in self._folders())
        return made if not taken else f"{made}-{taken + 1}"

    def begin(self, plan: Plan, began_at: float) -> Keeping:
        """Make the folder. Raises ConflictError where the name was taken meanwhile."""
        self.check(plan.name)
        folder = self._settings.data_folder(FOLDER) / plan.name
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            raise ConflictError(f"there is a run named {plan.name} already", "take another name") from None
        _write(folder / "spec.json", {"kind": LOAD_TEST, "began_at": began_at, **plain(plan)})
        return Keeping(folder, plan)

    def keep(self, kind: str, name: str, spec: Mapping[str, Any], report: Any) -> None:
        """A run of another kind, whole: spec as the list reads it. Raises ConflictError where the name is taken."""
        self.check(name)
        folder = self._settings.data_folder(FOLDER) / name
        folder.mkdir(mode=0o700)
        _write(folder / "spec.json", {"kind": kind, **spec})
        _write(folder / "report.json", plain(report))

    def kept(self, kind: str, name: str) -> dict[str, Any] | None:
        """The report of a run of that kind as it was written; None where it is of another.

        Raises NotFoundError, UsageError where its files can't be read.
        """
        folder = self._folder(name)
        if _read(folder / "spec.json").get("kind") != kind:
            return None
        return _read(folder / "report.json")

    def load(self, name: str) -> LoadReport:
        """Raises NotFoundError, UsageError where its files can't be read."""
        folder = self._folder(name)
        spec = _read(folder / "spec.json")
        if spec.get("kind") != LOAD_TEST:
            raise UsageError(f"{name} is no load test", f"it is a {spec.get('kind', 'folder of something else')}")
        told = _read(folder / "report.json") if (folder / "report.json").exists() else None
        plan = _plan(spec)
        steps, notes = self._steps(folder, plan, told)
        if told is None:
            notes.append("the run was cut off, or is still under way: these are the rows that are there")
        return LoadReport(
            plan.name,
            plan.spec,
            plan.service,
            plan.slo,
            tuple(steps),
            plan.sweep,
            began_at=float(spec.get("began_at", 0.0)),
            took_s=0.0 if told is None else told["took_s"],
            interrupted=told is None or bool(told["interrupted"]),
            cost=RunCost(None) if told is None else RunCost(**told["cost"]),
            marks=() if told is None else tuple(Mark(**mark) for mark in told["marks"]),
            resumes=None if told is None else told["resumes"],
            notes=(*(() if told is None else told["notes"]), *notes),
            folder=str(folder),
            beside=() if told is None else tuple(Beside(**_known(Beside, b)) for b in told.get("beside", ())),
        )

    def runs(self) -> list[KeptRun]:
        """The newest first. What can't be read is left out."""
        found = [run for folder in self._folders() if (run := _listed(folder)) is not None]
        return sorted(found, key=lambda run: -run.began_at)

    @property
    def _root(self) -> Path:
        return self._settings.data_dir / FOLDER

    def _folders(self) -> list[Path]:
        return [p.parent for p in self._root.glob("*/spec.json")] if self._root.is_dir() else []

    def _folder(self, name: str) -> Path:
        names = [p.name for p in self._folders()]
        if name not in names:
            hint = did_you_mean(name, names) if names else "`tuna benchmark load-test` makes one"
            raise NotFoundError(f"no run named {name!r}", hint)
        return self._root / name

    def _steps(self, folder: Path, plan: Plan, told: Mapping[str, Any] | None) -> tuple[list[Step], list[str]]:
        made: list[Step] = []
        notes: list[str] = []
        for number, path in enumerate(_row_files(folder, plan)):
            if not path.exists() and made:
                break
            kept = rows_files.read(path) if path.exists() else rows_files.Kept(())
            notes += kept.notes
            own = told["steps"][number] if told is not None and number < len(told["steps"]) else {}
            level = plan.levels[number] if plan.levels else None
            # Of a sweep that was interrupted, the step that it was at.
            last = told is None or number + 1 == len(told["steps"])
            early = last and (told is None or bool(told["interrupted"]))
            step = step_of(at_level(plan, level), kept.rows, level, plan.slo, early)
            lag = own.get("lag")
            made.append(
                changed(
                    step,
                    lag=None if lag is None else Lag(**lag),
                    began_at=own.get("began_at", 0.0),
                    took_s=own.get("took_s", 0.0),
                    notes=tuple(own.get("notes", ())),
                )
            )
        return made, notes


class Keeping:
    """A run that is being kept, from its begin to its report."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self._plan = plan
        self._files = _row_files(folder, plan)
        self._open: tuple[int, TextIO] | None = None

    def rows(self, rows: Iterable[Row], step: int = 0) -> None:
        """Add rows as they come; they are on the disk when this returns, unless the machine itself dies."""
        if self._open is None or self._open[0] != step:
            self.close()
            self._open = step, self._files[step].open("a", encoding="utf-8")
        self._open[1].writelines(rows_files.line(row) + "\n" for row in rows)
        self._open[1].flush()

    def end(self, report: LoadReport, html: str | None) -> LoadReport:
        """Write all of it in its last form."""
        self.close()
        for path, step in zip(self._files, report.steps, strict=False):
            rows_files.write(path, step.rows)
        if html is not None:
            rows_files.replace(self.folder / "report.html", lambda p: p.write_text(html, encoding="utf-8"))
        _write(self.folder / "report.json", plain(report))
        return changed(report, folder=str(self.folder))

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


def at_level(plan: Plan, level: float | None) -> LoadSpec:
    """The load of one step of a sweep."""
    if level is None or plan.sweep is None:
        return plan.spec
    change: dict[str, Any] = {plan.sweep: int(level) if plan.sweep == "concurrency" else level}
    return changed(plan.spec, arrivals=changed(plan.spec.arrivals, **change))


def step_of(spec: LoadSpec, rows: Sequence[Row], level: float | None, slo: Slo | None, early: bool = False) -> Step:
    """Rows in order, and their figures. early: it ended before its time."""
    ordered = tuple(sorted(rows, key=lambda row: row.number))
    closed = spec.arrivals.kind == "closed"
    # A run that ended early did not schedule for as long as it was to.
    schedule_s = None if closed or early or spec.requests is not None else spec.duration_s
    return Step(measure(ordered, streamed=spec.target.stream, schedule_s=schedule_s, slo=slo), ordered, level)


def plain(value: Any) -> Any:
    """For JSON; what is hidden from `repr` (headers, rows, samples) stays out."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.repr}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _row_files(folder: Path, plan: Plan) -> list[Path]:
    if not plan.levels:
        return [folder / "rows.jsonl"]
    return [folder / f"rows-{number}.jsonl" for number in range(1, len(plan.levels) + 1)]


def _write(path: Path, data: Any) -> None:
    text = json.dumps(data, indent=1, default=str)
    rows_files.replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as e:
        raise UsageError(f"{path} can't be read: {e}", "its run can't be shown; remove its folder") from e
    return data if isinstance(data, dict) else {}


def _plan(data: Mapping[str, Any]) -> Plan:
    spec, prompts = data["spec"], data["spec"]["prompts"]
    target = _known(Target, spec["target"])
    lengths = {name: Lengths(**_known(Lengths, prompts[name])) for name in ("input_tokens", "output_tokens")}
    made = LoadSpec(
        **_known(LoadSpec, spec)
        | {
            "target": Target(**target | {"models": tuple(target["models"])}),
            "arrivals": Arrivals(**_known(Arrivals, spec["arrivals"])),
            "prompts": Prompts(**_known(Prompts, prompts) | lengths),
        }
    )
    slo = None if data["slo"] is None else Slo(**data["slo"])
    return Plan(data["name"], made, data["service"], slo, data["sweep"], tuple(data["levels"]))


def _known(kind: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """A newer Tuna may have written more."""
    return {f.name: data[f.name] for f in fields(kind) if f.name in data}


def _listed(folder: Path) -> KeptRun | None:
    try:
        spec = json.loads((folder / "spec.json").read_bytes())
        told = json.loads(path.read_bytes()) if (path := folder / "report.json").exists() else None
        target = spec.get("spec", {}).get("target", {})
        made = KeptRun(
            folder.name,
            str(spec.get("kind")),
            "unfinished" if told is None else "interrupted" if told.get("interrupted") else "complete",
            spec.get("service") or target.get("base_url", ""),
            tuple(target.get("models", ())),
            float(spec.get("began_at", 0.0)),
        )
        if told is None or not told.get("steps"):
            return made
        figures = told["steps"][-1]["figures"]
        return changed(
            made,
            requests=sum(step["figures"]["requests"] for step in told["steps"]),
            failed=sum(step["figures"]["failed"] for step in told["steps"]),
            ttft_p50_ms=figures["ttft_ms"]["quantiles"][0]["value"],
            tokens_per_s=figures["tokens_per_s"],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
