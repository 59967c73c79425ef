"""Proxy tokens: what opens a web function that asks for one.

Modal tells a token's secret once, when it is made. The user's own is taken from the environment where it is set;
else one is made with the app's name and goes when the app does; its secret is kept with the deployment's others.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from tuna_nb.backends.base import Auth, Check, Ref
from tuna_nb.backends.modal.told import told
from tuna_nb.backends.names import deployment_of
from tuna_nb.errors import CredentialsError, NotFoundError
from tuna_nb.secrets import Secrets
from tuna_nb.settings import Settings

if TYPE_CHECKING:
    import modal

ENVIRONMENT: Final = ("MODAL_PROXY_TOKEN_ID", "MODAL_PROXY_TOKEN_SECRET")
_KEPT: Final = "modal_proxy_token"


def auth(pair: tuple[str, str]) -> Auth:
    return Auth({"Modal-Key": pair[0], "Modal-Secret": pair[1]})


def known(ref: Ref) -> tuple[str, str] | None:
    """Id and secret of the token that opens the app, as far as they are here. Asks nobody."""
    return _own() or _kept(ref)


async def found(workspace: modal.Workspace, ref: Ref, within_s: float) -> tuple[str, str]:
    """The user's own, else the one that was made for this app, else a new one."""
    if (own := _own()) is not None:
        return own
    tokens = workspace.proxy_tokens
    async with told("the list of proxy tokens", within_s):
        there = {token.token_id for token in await tokens.list.aio()}
    kept = _kept(ref)
    if kept is not None and kept[0] in there:
        return kept
    async with told(f"a proxy token for {ref.name}", within_s, creates=True):
        made = await tokens.create.aio(name=ref.name)
    _keep(ref, f"{made.token_id} {made.token_secret}")
    async with told(f"the proxy token of {ref.name}", within_s):
        if any(token.scoped for token in await tokens.list.aio() if token.token_id == made.token_id):
            # A workspace with roles: a token opens the environments that it was allowed, and no other.
            await tokens.allow.aio(made.token_id, await _environment(workspace))
    return made.token_id, made.token_secret


async def forget(workspace: modal.Workspace, ref: Ref, within_s: float) -> None:
    """Remove every token that was made for the app, whoever made it."""
    tokens = workspace.proxy_tokens
    async with told(f"the proxy token of {ref.name}", within_s):
        ours = [token.token_id for token in await tokens.list.aio() if token.name == ref.name]
    for token in ours:
        try:
            async with told(f"the proxy token of {ref.name}", within_s):
                await tokens.delete.aio(token)
        except NotFoundError:
            continue
    if _kept(ref) is not None:
        _keep(ref, "")


async def row(workspace: modal.Workspace, within_s: float) -> Check:
    """Whether there is a token, or one can be made."""
    if _own() is not None:
        return Check("proxy token", True, f"{ENVIRONMENT[0]} is used; only a request can show that it opens")
    try:
        async with told("the list of proxy tokens", within_s):
            await workspace.proxy_tokens.list.aio()
    except CredentialsError as exc:
        fix = f"have one made (`modal workspace proxy-tokens create`), and set {' and '.join(ENVIRONMENT)}"
        return Check("proxy token", False, exc.message, fix)
    return Check("proxy token", True, "a proxy token is made for the app, and removed with it")


async def _environment(workspace: modal.Workspace) -> str:
    from modal.config import config

    if named := config.get("environment"):
        return str(named)
    # Untyped in the SDK's own stub.
    settings = await workspace.settings.list.aio()  # type: ignore[no-untyped-call]
    return str(settings.default_environment)


def _own() -> tuple[str, str] | None:
    made, secret = (os.environ.get(name, "").strip() for name in ENVIRONMENT)
    return (made, secret) if made and secret else None


def _kept(ref: Ref) -> tuple[str, str] | None:
    made, _, secret = (Secrets(Settings.load()).get(_owner(ref), _KEPT) or "").partition(" ")
    return (made, secret) if secret else None


def _keep(ref: Ref, value: str) -> None:
    Secrets(Settings.load()).put(_owner(ref), _KEPT, value)


def _owner(ref: Ref) -> str:
    """Whose secrets the token is kept with."""
    return ref.deployment_id or deployment_of(ref.name) or ref.name
