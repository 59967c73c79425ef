"""The adapter contract: what Tuna asks of a provider, and what it promises in return.

A backend is the only code that talks to its provider. It decides no policy, reads no store, prints nothing.
It is found through the entry-point group `tuna_nb.backends`; a third party adds one without forking.

Every resource a backend creates carries the deployment's id, as a tag or in its name, and is never touched
without it. The caller has written a record with the resource's *name* before `deploy` is called, so a resource
can always be found again by name through `list_owned`, whatever died in between.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from tuna_nb.catalog.offers import Offer
from tuna_nb.errors import BackendError


class Kind(enum.StrEnum):
    """What a backend sells: GPUs by the second on demand, or interruptible ones by the hour."""

    SERVERLESS = "serverless"
    SPOT = "spot"


class PriceAccess(enum.Enum):
    """Who may ask a provider for its prices."""

    ANYONE = enum.auto()
    ACCOUNT = enum.auto()
    """Who has an account there."""
    NOBODY = enum.auto()
    """It has none that can be asked, or another source reads it."""


@dataclass(frozen=True, slots=True)
class ServerlessScaling:
    """How the serverless side scales.

    concurrency: requests at once per container. scaledown_window: idle seconds before a container stops.
    timeout: seconds a request may take. workers_min, workers_max: containers kept and allowed.
    scaler_value: queue delay in seconds before another worker starts, where the provider scales by that.
    """

    concurrency: int = 32
    scaledown_window: float = 60
    timeout: float = 600
    workers_min: int = 0
    workers_max: int = 1
    scaler_value: float = 4


@dataclass(frozen=True, slots=True)
class SpotScaling:
    """How the spot side scales. target_qps: requests per second per replica. Delays are in seconds."""

    min_replicas: int = 0
    max_replicas: int = 5
    target_qps: float = 10
    upscale_delay: float = 5
    downscale_delay: float = 300


@dataclass(frozen=True, slots=True)
class Engine:
    """The program that serves the model.

    model: the model's id as the user gave it; also the name that clients ask for.
    command: None for the backend's own engine (vLLM; on `local` its stand-in); else a command line with the
        placeholders {model}, {host} and {port}, split by shell rules first and filled in per token.
    max_model_len: context window in tokens. tp_size: tensor parallel degree.
    fast_boot: start sooner at the price of throughput (vLLM's eager mode).
    image: container image with the engine; None for the pinned one. args: more arguments for it.
    health_path: answers 200 when the engine serves. quantization, dtype: vLLM's own words, None for its choice.
    gated: the model's weights are given only to who shows a Hugging Face token.
    """

    model: str
    command: str | None = None
    max_model_len: int = 4096
    tp_size: int = 1
    fast_boot: bool = True
    image: str | None = None
    args: tuple[str, ...] = ()
    health_path: str = "/health"
    quantization: str | None = None
    dtype: str | None = None
    gated: bool = False


@dataclass(frozen=True, slots=True)
class ServiceRequest:
    """One side (serverless or spot) of a deployment, as an adapter gets it.

    name: the resource's name at the provider; chosen before anything is created and unique per deployment.
    deployment_id: goes into the provider's tags. options: the provider's own settings, already known to be
    among `Backend.options`; values are text as the user typed it.
    """

    deployment_id: str
    name: str
    kind: Kind
    engine: Engine
    gpu: str
    gpu_count: int
    scaling: ServerlessScaling | SpotScaling
    region: str | None = None
    public: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ref:
    """A resource at a provider. `id` is the provider's own and may be None where only our name is known."""

    provider: str
    kind: Kind
    name: str
    id: str | None = None
    deployment_id: str | None = None


@dataclass(frozen=True, slots=True)
class Quote:
    """Where a plan's price comes from. observed_at: Unix seconds. snapshot: from the table that ships with Tuna."""

    observed_at: float
    source: str
    snapshot: bool = False

    @classmethod
    def of(cls, offer: Offer | None, instead_of: str = "") -> Quote | None:
        """An offer's; None where there is none. instead_of: why nothing newer is known, said in its source."""
        if offer is None:
            return None
        source = f"{offer.source} ({instead_of})" if instead_of else offer.source
        return cls(offer.observed_at, source, offer.snapshot)


@dataclass(frozen=True, slots=True)
class PlannedResource:
    """One thing that will be created. worst_case_usd_per_hour: at the most replicas; None means unknown."""

    what: str
    name: str
    worst_case_usd_per_hour: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What `deploy` will create, nothing created yet. Secrets appear by reference, never by value."""

    request: ServiceRequest
    resources: tuple[PlannedResource, ...]
    price_per_hour_usd: float | None
    """Price of one replica or container while it bills, all in; None means unknown, never free."""
    notes: tuple[str, ...] = ()
    quote: Quote | None = field(default=None, compare=False)
    """None where the price is nobody's list price (a pretended provider's)."""

    @property
    def worst_case_usd_per_hour(self) -> float | None:
        known = [r.worst_case_usd_per_hour for r in self.resources]
        return None if any(k is None for k in known) else sum(k for k in known if k is not None)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go. `url` may have a path and has no trailing slash; `/v1/...` is appended to it.

    balances: `url` is a load balancer before replicas that can be addressed one by one, as `Replica.url` tells:
    the router goes to them directly and to `url` only where it knows of none. traffic_url: to be asked (GET) once
    for each request that went past the balancer, whose count of requests decides how many replicas there are.

    replicas_url: answers `{"ready": n, "starting": n, "draining": n, "total": n}` to a GET with the resource's
    own headers, where the provider has such a thing; the router reads preemption notices from it.
    """

    ref: Ref
    url: str
    replicas_url: str | None = None
    balances: bool = False
    traffic_url: str | None = None
    sync_url: str | None = None


class State(enum.StrEnum):
    WAITING = "waiting"
    """Accepted, and waiting for the provider to have room: costs nothing yet."""
    STARTING = "starting"
    READY = "ready"
    IDLE = "idle"
    """Scaled to zero: nothing runs, a request would wake it."""
    DRAINING = "draining"
    """Serving what it has and taking nothing new: preempted with notice, or going away."""
    STOPPING = "stopping"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Replica:
    """A container or spot machine. started_at: Unix seconds from which it bills, or, unless start_told, at which
    it was first seen by this process.

    url: answers from this replica alone, with the resource's own headers, where it can be addressed. notice_url:
    answers 204 to a GET with those headers, and `{"seconds": n}` once the machine is to be taken away.
    """

    id: str
    state: State
    started_at: float
    region: str | None = None
    detail: str = ""
    url: str | None = None
    notice_url: str | None = None
    start_told: bool = True


@dataclass(frozen=True, slots=True)
class Status:
    """What the provider says of a resource now. `billing`: whether it costs money at this moment."""

    ref: Ref
    state: State
    replicas: tuple[Replica, ...]
    billing: bool
    observed_at: float
    detail: str = ""
    endpoint_url: str | None = None


@dataclass(frozen=True, slots=True)
class LogLine:
    """at: Unix seconds. source: the replica or container id."""

    at: float
    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a provider needs. `fix` is the exact command or step that mends it."""

    name: str
    passed: bool
    message: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Auth:
    """The set of headers that opens a resource, and when they must be renewed (Unix seconds, or None).

    The headers are left out of `repr`, so that a log line of an Auth shows no key.
    """

    headers: Mapping[str, str] = field(repr=False)
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class UsageInterval:
    """One replica's billed time as the provider reports it.

    started_at, ended_at: Unix seconds; ended_at None while it runs. price_per_hour_usd: for the replica with
    all its GPUs. granularity_s: the provider rounds the interval up to a multiple of this. ready_at: when it began
    to serve, None where it never did or nobody tells.
    """

    replica_id: str
    started_at: float
    ended_at: float | None
    price_per_hour_usd: float
    granularity_s: float = 1.0
    ready_at: float | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """What the provider's own account says of a resource for a span of time.

    started_at, ended_at: Unix seconds. usd: before credits and taxes. what: the line of its account, in its words.
    """

    started_at: float
    ended_at: float
    usd: float
    what: str = ""


@dataclass(frozen=True, slots=True)
class Door:
    """What a router must know of the way into a provider, which is not the engine's to say.

    first_byte_s: so long the provider may hold a request while a container starts; None: the router's own figure.
    answer_s: it cuts an answer that has not ended by then, streamed or not; None: no limit known.
    redirects: a slow answer is told as a 303 to the place where it will be, to be followed with GET.
    """

    first_byte_s: float | None = None
    answer_s: float | None = None
    redirects: bool = False


Progress = Callable[[str, float | None], None]
"""Called with a short sentence and, where it is known, the fraction done (0..1). Never blocks."""


class Backend(abc.ABC):
    """One provider. All methods are cancellable; each raises `errors.BackendError` when the provider fails.

    An error is never read as "empty": a listing that could not be fetched raises.
    """

    name: ClassVar[str]
    """As in `--serverless-provider NAME` and in the registry."""
    kinds: ClassVar[frozenset[Kind]]
    clouds: ClassVar[tuple[str, ...]] = ()
    """As in `--spots-cloud NAME`, the clouds in which it rents spot machines; its name alone where empty."""
    options: ClassVar[Mapping[str, str]] = {}
    """The provider's own settings: name to one line of help."""
    controller: ClassVar[bool] = False
    """It keeps a machine of its own while a service is there, on which a router can run too."""
    pretends: ClassVar[bool] = False
    """Its GPUs and prices are pretended: chosen only where nothing real is configured."""
    price_access: ClassVar[PriceAccess] = PriceAccess.ACCOUNT
    """Who `prices` is asked for, to compare them."""
    poll_s: ClassVar[float] = 5.0
    """How often its status may be asked for while something is awaited."""
    door: ClassVar[Door] = Door()
    tells_usage: ClassVar[bool] = False
    """It keeps the history of what it billed: `usage` answers. Else what is up is seen by looking."""
    invoice: ClassVar[str] = "its console or invoice has the figures"
    """Where a person finds what it has charged."""

    def configured(self) -> bool:
        """Whether its package and credentials are here, seen without asking anyone.

        Where they are not, this provider is neither chosen nor searched for orphans.
        """
        return True

    def only_here(self, request: ServiceRequest) -> bool:
        """Whether the endpoint that the request asks for is reached from this machine alone."""
        return False

    def clouds_here(self) -> tuple[str, ...]:
        """Of its `clouds` those whose credentials are here, the one to prefer first; seen without asking anyone."""
        return self.clouds if self.configured() else ()

    @abc.abstractmethod
    async def check(self, request: ServiceRequest | None = None) -> list[Check]:
        """Every thing the provider needs, met or not, as its own row. Creates nothing.

        A request without a GPU (an empty name) asks about none.
        """

    @abc.abstractmethod
    async def plan(self, request: ServiceRequest) -> Plan:
        """What would be created and its worst-case price. Creates nothing.

        Raises RequestError for a request this provider can never meet (GPU not offered, bad option).
        """

    @abc.abstractmethod
    async def deploy(self, plan: Plan, progress: Progress) -> Endpoint:
        """Create the resource and return where it answers. Idempotent: the same plan again finds it by name.

        Returns when the provider has the resource and its URL is known; the first replica may still be booting.
        Raises CapacityError, CredentialsError, BackendError.
        """

    @abc.abstractmethod
    async def status(self, ref: Ref) -> Status:
        """The state now, fresh from the provider. A resource that is not there has State.GONE."""

    @abc.abstractmethod
    def logs(self, ref: Ref, since: float | None = None, follow: bool = False) -> AsyncIterator[LogLine]:
        """Lines in order of time from `since` (Unix seconds) on; `follow` keeps the iterator open."""

    @abc.abstractmethod
    async def scale(self, ref: Ref, scaling: ServerlessScaling | SpotScaling) -> None:
        """Change the scaling of a running resource in place."""

    @abc.abstractmethod
    async def wake(self, ref: Ref) -> None:
        """Ask a resource that has scaled to zero to start; returns at once."""

    @abc.abstractmethod
    async def destroy(self, ref: Ref) -> None:
        """Returns only when a fresh listing shows that the resource is gone. Not found is success."""

    @abc.abstractmethod
    async def list_owned(self) -> list[Ref]:
        """Everything at the provider that carries our tag or name prefix, whoever's record it is in."""

    @abc.abstractmethod
    async def auth(self, ref: Ref) -> Auth:
        """The headers that the router must send upstream."""

    @abc.abstractmethod
    async def prices(self) -> list[Offer]:
        """What the provider sells now; what its snapshot says where it can't be asked without credentials.

        Raises BackendError where it could be asked and did not answer.
        """

    async def remove_shared(self) -> list[str]:
        """Remove what is kept between deployments since it is slow to make and costs nothing, where it is ours
        and empty; returns the names of what is gone."""
        return []

    async def usage(self, ref: Ref) -> list[UsageInterval]:
        """Billed time so far, finished intervals included, for a destroyed resource too while the provider
        keeps its account. Raises BackendError where the provider tells nothing."""
        raise BackendError(f"{self.name} tells no billed intervals of {ref.name}", self.invoice)

    async def charges(self, ref: Ref, since: float, until: float) -> list[Charge]:
        """What the provider's account says that a resource has cost, in the spans that it accounts by; they may
        reach beyond [since, until) (Unix seconds), and the last hours may be missing yet.

        For a destroyed resource too. Raises BackendError where the provider has no such account or can't be asked.
        """
        raise BackendError(f"{self.name} tells no account of {ref.name}", self.invoice)
