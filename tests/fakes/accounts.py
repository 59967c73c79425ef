"""An account at each pretended provider: its fake running, the environment that the adapter reads, the adapter.

`open_all()` is what a notebook says: from then on every provider is the one on this machine.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.cloud import FakeCloud
from tuna_nb.backends import registry
from tuna_nb.backends.base import Backend

SetEnv = Callable[[str, str], object]
NOWHERE = "http://127.0.0.1:9"


@dataclass
class Account:
    """gpu: one that the provider sells. names: of everything in the account, others' resources included. options:
    the provider's own settings that a deployment needs here."""

    backend: Backend
    cloud: FakeCloud
    gpu: str
    names: Callable[[], list[str]]
    options: dict[str, str] = field(default_factory=dict)


Open = Callable[[SetEnv], AbstractContextManager[Account]]


@contextmanager
def runpod(setenv: SetEnv) -> Iterator[Account]:
    from tests.fakes.runpod import KEY, FakeRunpod
    from tuna_nb.backends.runpod import RunpodBackend

    with FakeRunpod() as cloud:
        setenv("RUNPOD_API_KEY", KEY)
        yield Account(RunpodBackend(cloud.url, pace=0.05), cloud, "L4", lambda: cloud.names)


@contextmanager
def modal(setenv: SetEnv) -> Iterator[Account]:
    from tests.fakes.modal import TOKEN, FakeModal
    from tuna_nb.backends.modal.backend import ModalBackend

    with FakeModal() as cloud:
        setenv("MODAL_CONFIG_PATH", "/nonexistent/modal.toml")
        setenv("MODAL_SERVER_URL", cloud.url)
        setenv("MODAL_TOKEN_ID", TOKEN[0])
        setenv("MODAL_TOKEN_SECRET", TOKEN[1])
        yield Account(ModalBackend(pace=0.05), cloud, "L4", lambda: cloud.names)


@contextmanager
def cloudrun(setenv: SetEnv) -> Iterator[Account]:
    from google.auth import credentials

    from tests.fakes.cloudrun import FakeCloudRun
    from tuna_nb.backends.cloudrun.backend import CloudRunBackend

    # google.auth asks a fixed host, in the background, to which locations an account is bound.
    bound: Any = getattr(credentials, "CredentialsWithRegionalAccessBoundary", None)
    if bound is not None:
        bound._after_refresh = lambda *_: None
    with FakeCloudRun() as cloud, tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "key.json"
        key.write_text(json.dumps(cloud.key_file()))
        setenv("CLOUDSDK_CONFIG", folder)
        setenv("NO_GCE_CHECK", "true")
        setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
        setenv("TUNA_GOOGLE_URL", cloud.url)
        yield Account(CloudRunBackend(timeout_s=20, pace=0.01), cloud, "L4", lambda: cloud.names)


@contextmanager
def cerebrium(setenv: SetEnv) -> Iterator[Account]:
    from tests.fakes.cerebrium import KEY, FakeCerebrium
    from tuna_nb.backends.cerebrium.backend import KEYS, CerebriumBackend

    with FakeCerebrium() as cloud:
        setenv(KEYS[0], KEY)
        setenv("CEREBRIUM_REST_URL", cloud.url)
        yield Account(CerebriumBackend(endpoints=cloud.url, pace=0.01), cloud, "L4", lambda: cloud.names)


@contextmanager
def azure(setenv: SetEnv) -> Iterator[Account]:
    from azure.core.credentials import AccessTokenInfo
    from azure.core.pipeline.policies import SansIOHTTPPolicy

    from tests.fakes.azure import GROUP, REGION, SUBSCRIPTION, TOKEN, FakeAzure
    from tuna_nb.backends.azure.backend import AzureBackend

    class Credential:
        def get_token_info(self, *scopes: str, options: Any = None) -> AccessTokenInfo:
            return AccessTokenInfo(TOKEN, int(time.time()) + 3600)

    class WithoutTls(SansIOHTTPPolicy):  # type: ignore[type-arg]
        """The SDK's own bearer policy, allowed on http."""

        def on_request(self, request: Any) -> None:
            request.context.options["enforce_https"] = False

    with FakeAzure() as cloud:
        setenv("AZURE_SUBSCRIPTION_ID", SUBSCRIPTION)
        setenv("AZURE_RESOURCE_GROUP", GROUP)
        setenv("AZURE_REGION", REGION)
        backend = AzureBackend(
            cloud.url,
            credential=Credential(),
            pipeline={"per_call_policies": [WithoutTls()]},
            prices_url=cloud.url,
            endpoint_url=lambda fqdn: f"http://{fqdn}",
            pace=0.02,
        )
        # Environments are kept on purpose, for the next deployment.
        yield Account(backend, cloud, "T4", lambda: [n for n in cloud.names if not n.startswith("tuna-env-")])


@contextmanager
def baseten(setenv: SetEnv) -> Iterator[Account]:
    from tests.fakes.baseten import KEY, FakeBaseten
    from tuna_nb.backends.baseten.backend import BasetenBackend

    with FakeBaseten() as cloud:
        setenv("BASETEN_API_KEY", KEY)
        backend = BasetenBackend(
            cloud.url, app_url=cloud.url, s3_url=f"{cloud.url}/s3", inference_url=cloud.inference, pace=0.02
        )
        yield Account(backend, cloud, "L4", lambda: cloud.names)


ACCOUNTS: dict[str, Open] = {
    "azure": azure,
    "baseten": baseten,
    "cerebrium": cerebrium,
    "cloudrun": cloudrun,
    "modal": modal,
    "runpod": runpod,
}
"""By the provider's name."""


class Accounts(ExitStack):
    """All of them at once, for this process, until it is closed; by name."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: dict[str, Account] = {}

    def __repr__(self) -> str:
        return f"<accounts at {', '.join(self.by_name)}, all on this machine>"


def open_all() -> Accounts:
    """An account at every provider whose extra is installed; the hub is not asked."""
    accounts = Accounts()
    os.environ["HF_ENDPOINT"] = NOWHERE
    for name, opener in ACCOUNTS.items():
        account = accounts.enter_context(opener(os.environ.__setitem__))
        account.backend.poll_s = 0.2  # type: ignore[misc]
        registry.put(account.backend)
        accounts.by_name[name] = account
    return accounts
