"""The adapter: what Tuna asks, in Cloud Run's terms."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from tuna_nb.backends import engine as engines
from tuna_nb.backends.base import (
    Auth,
    Backend,
    Check,
    Door,
    Endpoint,
    Kind,
    LogLine,
    Plan,
    PlannedResource,
    PriceAccess,
    Progress,
    Quote,
    Ref,
    Replica,
    ServerlessScaling,
    ServiceRequest,
    SpotScaling,
    State,
    Status,
)
from tuna_nb.backends.cloudrun import needs, watching
from tuna_nb.backends.cloudrun import service as services
from tuna_nb.backends.cloudrun.calls import ENABLE, SIGN_IN, Calls, no_room
from tuna_nb.backends.cloudrun.identity import mint
from tuna_nb.backends.cloudrun.prices import Prices
from tuna_nb.backends.lifecycle import create_once, knock, until_gone
from tuna_nb.catalog import snapshot
from tuna_nb.catalog.offers import Offer
from tuna_nb.errors import BackendError, CapacityError, CredentialsError, NotFoundError, RequestError

_LOOK: Final = "https://console.cloud.google.com/run shows it"
_NO_PROJECT: Final = "export GOOGLE_CLOUD_PROJECT=<project id>"
_OPERATION_S: Final = engines.START_S + 600.0
_GONE_S: Final = 300.0
_OVERLAP_S: Final = 30.0
"""A followed log is asked for again from so long ago: lines come late, and not in order."""
_TAIL: Final = 4


class CloudRunBackend(Backend):
    """Cloud Run's services.

    url: of all Google's APIs, by default TUNA_GOOGLE_URL or Google's own. timeout_s: of a call. pace: of its waits.
    """

    name: ClassVar[str] = "cloudrun"
    price_access: ClassVar[PriceAccess] = PriceAccess.NOBODY
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.SERVERLESS})
    options: ClassVar[Mapping[str, str]] = services.OPTIONS
    # A request waits for an instance as long as it may take: `serverless.timeout`, an hour at the most.
    door: ClassVar[Door] = Door(first_byte_s=300, answer_s=3600)
    # Google tells costs to people and to BigQuery alone, a day late; the Cloud Billing API has prices and budgets.
    invoice: ClassVar[str] = "Billing > Reports in Google's console, by label; its BigQuery export has every line"

    def __init__(self, url: str | None = None, *, timeout_s: float = 30.0, pace: float = 1.0) -> None:
        self._calls = Calls(url or os.environ.get("TUNA_GOOGLE_URL"), timeout_s=timeout_s, pace=pace)
        self._pace = pace
        self._prices = Prices()
        self._woken: dict[str, float] = {}
        self._seen: dict[str, float] = {}
        """When each instance was first counted: Google does not tell their starts."""

    def configured(self) -> bool:
        if not _installed():
            return False
        config = os.environ.get("CLOUDSDK_CONFIG") or Path("~/.config/gcloud").expanduser()
        files = (os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"), f"{config}/application_default_credentials.json")
        # On a machine of Google's its metadata server signs in; that Cloud Run is meant, the project says.
        machine = Path("/sys/class/dmi/id/product_name")
        return any(file and Path(file).is_file() for file in files) or (
            bool(os.environ.get("GOOGLE_CLOUD_PROJECT"))
            and machine.is_file()
            and "Google" in machine.read_text(errors="replace")
        )

    async def check(self, request: ServiceRequest | None = None) -> list[Check]:
        if not _installed():
            return [Check("package", False, "google-cloud-run is not installed", "pip install 'tuna-nb[cloudrun]'")]
        try:
            await self._calls.credentials()
        except CredentialsError as exc:
            return [Check("credentials", False, exc.message, exc.hint)]
        try:
            project = await self._project(request)
        except CredentialsError as exc:
            return [Check("project", False, exc.message, exc.hint)]
        rows: list[Check] = []
        region = services.REGIONS[0]
        if request is not None:
            try:
                services.checked(request)
                region = services.region(request)
            except RequestError as exc:
                rows.append(Check("gpu", False, exc.message, exc.hint))
            else:
                invited = region in services.CARDS[request.gpu].invited
                told = "has it, by invitation" if invited else "has it"
                rows.append(Check("gpu", True, f"Cloud Run's {region} {told}: {request.gpu}"))
        try:
            found = await self._listed(project, region)
        except CredentialsError as exc:
            off = exc.hint == ENABLE
            fix = f"{ENABLE} --project {project}" if off else exc.hint
            return [*rows, Check("api" if off else "credentials", False, exc.message, fix)]
        said = f"accepted; project {project} has {len(found)} services in {region}"
        rows.insert(0, Check("credentials", True, said))
        if request is not None and all(row.passed for row in rows):
            rows.append(await needs.quota(self._calls, project, region, request))
            if request.engine.gated:
                rows.append(await needs.secret(self._calls, project, request))
        return rows

    async def plan(self, request: ServiceRequest) -> Plan:
        scaling = services.checked(request)
        card, region = services.CARDS[request.gpu], services.region(request)
        offers, why = await self._prices.offers()
        # Google's catalogue may be silent on a region that the snapshot knows.
        found = services.price_per_hour(request, [*offers, *snapshot.of(self.name)])
        each, sold = found if found is not None else (None, None)
        quote = Quote.of(sold, why)
        notes = [
            f"the price has {card.cpu} vCPU and {card.memory_gib} GiB in it, which are billed beside the GPU",
            f"in {region}; an idle instance ends after some 15 minutes, which can't be set, and bills till then",
            "the deploy starts one instance, which bills while it loads the weights",
        ]
        if region in card.invited:
            notes.append(f"{region} gives this GPU by invitation only")
        if project := request.options.get("gcp_project"):
            notes.append(f"looked for later by name in GOOGLE_CLOUD_PROJECT: set it to {project} too")
        if request.public:
            notes.append("public: Google asks nobody for a token")
        worst = None if each is None else each * scaling.workers_max
        what = f"Cloud Run service, at most {scaling.workers_max} instances"
        return Plan(request, (PlannedResource(what, request.name, worst),), each, tuple(notes), quote)

    async def deploy(self, plan: Plan, progress: Progress) -> Endpoint:
        request = plan.request
        project, region = await self._project(request), services.region(request)
        parent = f"projects/{project}/locations/{region}"
        name = f"{parent}/services/{request.name}"

        async def find() -> Any | None:
            found = await self._get(name)
            if found is not None and _failed(found) and not found.latest_ready_revision:
                # Its first instance never got ready: it serves nobody, and is made anew.
                await self._remove(name)
                return None
            return found

        async def create() -> Any:
            progress(f"creating Cloud Run service {request.name} in {region}", None)
            made = services.service(request)
            operation = await self._calls.run(
                request.name,
                lambda client, how: (
                    client.create_service(
                        parent=parent, service=made, service_id=request.name, **how
                    ).operation.name
                ),
                creates=True,
            )
            await self._done(operation, name, progress)
            return await self._get(name)

        found = await self._settled(await create_once(find, create, pace=self._pace), name, progress)
        progress(f"{request.name} is at {found.uri}", 1.0)
        return Endpoint(_ref(found), _uri(found))

    async def status(self, ref: Ref) -> Status:
        try:
            found = await self._service(ref)
        except NotFoundError:
            return Status(ref, State.GONE, (), billing=False, observed_at=time.time())
        if found.delete_time:
            return self._told(found, State.STOPPING, "it is being deleted", 0)
        if _failed(found):
            return self._told(found, State.FAILED, _words(found), 0)
        if found.reconciling:
            return self._told(found, State.STARTING, "its instance is started", 1)
        least = found.scaling.min_instance_count
        try:
            count = await watching.count(self._calls, found.name)
        except (BackendError, NotFoundError) as exc:
            return self._told(found, State.READY, f"instances unknown: {exc.message}", max(1, least))
        if count:
            return self._told(found, State.READY, "", count)
        changed = max(_unix(found.update_time), self._woken.get(found.name, 0.0))
        if least or time.time() - changed < watching.LAG_S * self._pace:
            return self._told(found, State.STARTING, "instances unknown: none is counted yet", max(1, least))
        return self._told(found, State.IDLE, "", 0)

    async def logs(self, ref: Ref, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        found = await self._service(ref)
        begin = _unix(found.create_time) - 60 if since is None else since
        told: dict[tuple[str, float], None] = {}
        after = begin
        while True:
            entries = [entry async for entry in watching.entries(self._calls, found.name, after)]
            for number, line in sorted(entries, key=lambda entry: entry[1].at):
                if (number, line.at) not in told and (since is None or line.at >= since):
                    told[number, line.at] = None
                    yield line
            if not follow:
                return
            if told:
                after = max(begin, max(at for _, at in told) - _OVERLAP_S)
                told = {one: None for one in told if one[1] >= after}
            await asyncio.sleep(self.poll_s * self._pace)

    async def scale(self, ref: Ref, scaling: ServerlessScaling | SpotScaling) -> None:
        """Only how many instances: all else would be a new revision, which starts cold."""
        from google.cloud import run_v2
        from google.protobuf.field_mask_pb2 import FieldMask

        made = services.scaled(services.serverless(scaling))
        found = await self._service(ref)
        asked = run_v2.UpdateServiceRequest(
            service=run_v2.Service(name=found.name, scaling=made),
            update_mask=FieldMask(paths=["scaling.min_instance_count", "scaling.max_instance_count"]),
        )
        operation = await self._calls.run(
            ref.name, lambda client, how: client.update_service(request=asked, **how).operation.name
        )
        await self._done(operation, found.name, lambda *_: None)

    async def wake(self, ref: Ref) -> None:
        found = await self._service(ref)
        headers = dict((await self._auth(found)).headers)
        self._woken[found.name] = time.time()
        await knock(f"{_uri(found)}/health", headers)

    async def destroy(self, ref: Ref) -> None:
        try:
            name = (await self._service(ref)).name
        except NotFoundError:
            return
        await self._remove(name)
        self._woken.pop(name, None)

    async def list_owned(self) -> list[Ref]:
        project = await self._project(None)
        # One region after the other: each has its own listing, and asking all at once would be a storm.
        return [
            _ref(found)
            for region in services.REGIONS
            for found in await self._listed(project, region)
            if services.LABEL in found.labels
        ]

    async def auth(self, ref: Ref) -> Auth:
        return await self._auth(await self._service(ref))

    async def prices(self) -> list[Offer]:
        return (await self._prices.offers())[0]

    # Its own parts

    async def _project(self, request: ServiceRequest | None) -> str:
        asked = request.options.get("gcp_project") if request is not None else None
        if chosen := asked or os.environ.get("GOOGLE_CLOUD_PROJECT", "").strip():
            return chosen
        _, project = await self._calls.credentials()
        if not project:
            raise CredentialsError("cloudrun: no Google Cloud project is chosen", _NO_PROJECT)
        return project

    async def _get(self, name: str) -> Any | None:
        try:
            return await self._calls.run(_short(name), lambda client, how: client.get_service(name=name, **how))
        except NotFoundError:
            return None

    async def _service(self, ref: Ref) -> Any:
        """By its whole name, else looked for in every region. Raises NotFoundError."""
        if ref.id is not None:
            names = [ref.id]
        else:
            project = await self._project(None)
            names = [f"projects/{project}/locations/{r}/services/{ref.name}" for r in services.REGIONS]
        for name in names:
            if (found := await self._get(name)) is not None:
                return found
        raise NotFoundError(f"cloudrun: there is no service {ref.name}")

    async def _listed(self, project: str, region: str) -> list[Any]:
        parent = f"projects/{project}/locations/{region}"

        def ask(client: Any, how: dict[str, Any]) -> list[Any]:
            found: list[Any] = []
            for page in client.list_services(parent=parent, **how).pages:
                if page.unreachable:
                    raise BackendError(f"cloudrun: {region} was not reached: the list is not whole", "try again")
                found += page.services
            return found

        return await self._calls.run(f"the list of services in {region}", ask)

    async def _done(self, operation: str, name: str, progress: Progress) -> None:
        """Return when a long operation came to a good end. A service that never got ready is removed.

        Raises CapacityError and BackendError, in Google's words.
        """
        began, minutes = time.monotonic(), -1
        while True:
            # Not by the SDK's get_operation, which breaks on a field of the result that it does not know yet.
            told = await self._calls.rest("run", "GET", f"/v2/{operation}", _short(name))
            if told.get("done"):
                break
            if (passed := int(time.monotonic() - began) // 60) > minutes:
                minutes = passed
                progress(f"{_short(name)}: waiting for its first instance, {minutes} min", None)
            if time.monotonic() - began > _OPERATION_S:
                raise BackendError(f"cloudrun: {_short(name)} is not ready after {_OPERATION_S:g} s", _LOOK)
            await asyncio.sleep(self.poll_s * self._pace)
        if "error" in told:
            raise await self._broken(name, str(told["error"].get("message", told["error"])))

    async def _settled(self, found: Any | None, name: str, progress: Progress) -> Any:
        """One that somebody else's call created, when it is ready too."""
        end = time.monotonic() + _OPERATION_S
        while found is not None and found.reconciling and time.monotonic() < end:
            progress(f"{_short(name)}: waiting for its first instance", None)
            await asyncio.sleep(self.poll_s * self._pace)
            found = await self._get(name)
        if found is None:
            raise NotFoundError(f"cloudrun: {_short(name)} went away while it was waited for")
        if _failed(found):
            raise await self._broken(name, _words(found))
        return found

    async def _broken(self, name: str, words: str) -> BackendError:
        """Remove a service that never served, whose revision would be tried and billed again; its error."""
        try:
            found = await self._get(name)
            last = [] if found is None else [line.text async for line in self.logs(_ref(found))][-_TAIL:]
        except (BackendError, NotFoundError):
            last = []  # what the container said helps, and is no reason to say less
        if found is not None and not found.latest_ready_revision:
            await self._remove(name)
        told = " | ".join((" ".join(words.split()), *last))
        kind = CapacityError if no_room(words) else BackendError
        return kind(f"cloudrun: {_short(name)}: {told}", "mend what Google's words say, then deploy again")

    async def _remove(self, name: str) -> None:
        """Return when a fresh look and a fresh list lack it."""
        project, region = name.split("/")[1], name.split("/")[3]
        try:
            operation = await self._calls.run(
                _short(name), lambda client, how: client.delete_service(name=name, **how).operation.name
            )
            await self._done(operation, name, lambda *_: None)
        except NotFoundError:
            pass

        async def is_there() -> bool:
            return await self._get(name) is not None or name in [
                s.name for s in await self._listed(project, region)
            ]

        what = f"cloudrun: {_short(name)}"
        await until_gone(is_there, what, within_s=_GONE_S, poll_s=self._pace, hint=_LOOK)

    async def _auth(self, found: Any) -> Auth:
        if found.invoker_iam_disabled:
            return Auth({})
        from google.auth.exceptions import GoogleAuthError

        credentials, _ = await self._calls.credentials()
        person = found.annotations.get(services.IMPERSONATE)
        try:
            token, end = await self._calls.threaded(mint, credentials, _uri(found), person)
        except GoogleAuthError as exc:
            said = " ".join(str(exc).split())[:300]
            raise CredentialsError(f"cloudrun: no ID token for {_short(found.name)}: {said}", SIGN_IN) from None
        return Auth({"Authorization": f"Bearer {token}"}, end)

    def _told(self, found: Any, state: State, detail: str, count: int) -> Status:
        """Google names no instance: each that is counted stands as one, from when it was first counted."""
        now, short = time.time(), _short(found.name)
        ids = [f"{short}#{number}" for number in range(1, count + 1)]
        for old in [one for one in self._seen if one.startswith(f"{short}#") and one not in ids]:
            del self._seen[old]
        region = found.name.split("/")[3]
        replicas = tuple(
            Replica(one, state, self._seen.setdefault(one, now), region, detail, start_told=False) for one in ids
        )
        return Status(_ref(found), state, replicas, bool(count), now, detail, _uri(found) or None)


def _installed() -> bool:
    try:
        return importlib.util.find_spec("google.cloud.run_v2") is not None
    except ModuleNotFoundError:
        return False


def _failed(found: Any) -> bool:
    return not found.reconciling and found.terminal_condition.state.name == "CONDITION_FAILED"


def _words(found: Any) -> str:
    return str(found.terminal_condition.message or "its revision failed")


def _ref(found: Any) -> Ref:
    return Ref("cloudrun", Kind.SERVERLESS, _short(found.name), found.name, found.labels.get(services.LABEL))


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _uri(found: Any) -> str:
    return str(found.uri).rstrip("/")


def _unix(at: Any) -> float:
    return float(at.timestamp()) if at else 0.0
