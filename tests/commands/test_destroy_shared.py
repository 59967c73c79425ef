"""`destroy --shared` and `--azure-cleanup-env` remove what is kept between deployments, and only when asked."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.fakes.accounts import ACCOUNTS, NOWHERE
from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.commands.context import Context
from tuna_nb.commands.destroy import destroy
from tuna_nb.deployments.workspace import Workspace
from tuna_nb.jobs import Report, Work
from tuna_nb.settings import Settings


async def test_empty_environments_go_when_that_is_asked_for(
    own_data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    workspace = Workspace(Settings.load())
    with ACCOUNTS["azure"](monkeypatch.setenv) as account:
        workspace._backends["azure"] = account.backend
        monkeypatch.setattr("tuna_nb.backends.registry._found", dict)
        from tests.backends.test_azure import REQUEST

        plan = await account.backend.plan(REQUEST)
        endpoint = await account.backend.deploy(plan, lambda *_: None)
        await account.backend.destroy(endpoint.ref)

        def kept() -> list[str]:
            return [name for name in account.cloud.names if name.startswith("tuna-env-")]  # type: ignore[attr-defined]

        assert kept(), "the next deployment needs no half hour for it"
        options = argparse.Namespace(
            service_name=None, all=True, orphans=False, azure_cleanup_env=False, shared=False
        )
        for asked in (False, True):
            options.azure_cleanup_env = asked
            work = await destroy(options, Context(workspace))
            assert isinstance(work, Work)
            removed = await work.run(Report(lambda **_: None))
            assert bool(removed.names) == asked
            assert bool(kept()) != asked
    workspace.close()


class Keeper(LocalBackend):
    """Keeps something between deployments."""

    def __init__(self, name: str, *, here: bool = True) -> None:
        super().__init__()
        self.name = name  # type: ignore[misc]
        self.kept, self._here = [f"{name}-controller"], here

    def configured(self) -> bool:
        return self._here

    async def remove_shared(self) -> list[str]:
        gone, self.kept = self.kept, []
        return gone


async def test_all_that_is_kept_anywhere_goes_when_that_is_asked_for(
    own_data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(Settings.load())
    keepers = {k.name: k for k in (Keeper("one"), Keeper("two"), Keeper("not-here", here=False))}
    monkeypatch.setattr("tuna_nb.backends.registry._found", lambda: dict.fromkeys(keepers))
    workspace._backends.update(keepers)
    options = argparse.Namespace(service_name=None, all=True, orphans=False, azure_cleanup_env=False, shared=False)
    both = {"one-controller", "two-controller"}
    for asked, gone in ((False, set[str]()), (True, both)):
        options.shared = asked
        work = await destroy(options, Context(workspace))
        assert isinstance(work, Work)
        assert set((await work.run(Report(lambda **_: None))).names) == gone
    assert keepers["not-here"].kept
