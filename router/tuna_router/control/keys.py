"""`/router/keys`: keys made, shown and ended while the router runs. For admins; nobody is shown a key twice."""

from __future__ import annotations

import dataclasses
import secrets
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request

from tuna_router.auth import key_of, sha256_hex
from tuna_router.control.errors import Unprocessable, read_json
from tuna_router.control.models import Deleted, KeyIn, KeyList, NewKey
from tuna_router.errors import SettingsError
from tuna_router.keys.live import LiveKey
from tuna_router.keys.settings import key_to_json, parse_key, parse_keys
from tuna_router.settings import Settings, keep_a_way_in

if TYPE_CHECKING:
    from tuna_router.app import Router


def add_keys(app: FastAPI, router: Router) -> None:
    """The endpoints."""
    core = router.core

    def shown(live: LiveKey) -> dict[str, Any]:
        unix_s, spent = core.meter.wall(), live.spent
        return {
            **key_to_json(live.settings),
            "in_flight": live.in_flight,
            "started": live.started,
            "rejected": live.rejected,
            "prompt_tokens": live.prompt_tokens,
            "completion_tokens": live.completion_tokens,
            "spent_usd": round(spent.total_usd, 9),
            "spent_in_window_usd": round(spent.in_window(unix_s), 9),
            "window_ends_in_s": round(spent.window_ends_in(unix_s), 3),
            "unpriced_seconds": round(spent.unpriced_s, 6),
        }

    async def change(settings: Settings) -> None:
        try:
            keep_a_way_in(core.settings, settings, open_door=core.open_door)
            await router.configure(settings)
        except SettingsError as error:
            raise Unprocessable(error.message, error.hint) from error

    @app.get("/router/keys", response_model=KeyList)
    async def get_keys() -> dict[str, Any]:
        """All keys and what they have used."""
        return {"keys": [shown(live) for live in core.guard if live.settings.sha256]}

    @app.post(
        "/router/keys",
        response_model=NewKey,
        status_code=201,
        openapi_extra={
            "requestBody": {
                "content": {"application/json": {"schema": KeyIn.model_json_schema()}},
                "required": True,
            }
        },
    )
    async def post_key(request: Request) -> dict[str, Any]:
        """Add a key: one that the router makes and shows once, or one of which it gets the hash only."""
        data = await read_json(request)
        made = None
        if data.get("sha256") is None:
            made = f"tuna-{secrets.token_urlsafe(32)}"
            data["sha256"] = sha256_hex(made)
        try:
            new = parse_key(data)
        except SettingsError as error:
            raise Unprocessable(error.message, error.hint) from error
        for known in core.settings.all_keys:
            if known.name == new.name or known.sha256 == new.sha256:
                what = f"named {new.name!r}" if known.name == new.name else "with this hash"
                raise Unprocessable(
                    f"there is a key {what} already", "choose another name, or DELETE it first", 409
                )
        try:
            keys = parse_keys("keys", (*core.settings.keys, new))
        except SettingsError as error:
            raise Unprocessable(error.message, error.hint) from error
        await change(dataclasses.replace(core.settings, keys=keys))
        live = next(live for live in core.guard if live.settings.sha256 == new.sha256)
        return {"key": made, **shown(live)}

    @app.delete("/router/keys/{name}", response_model=Deleted)
    async def delete_key(name: str, request: Request) -> dict[str, Any]:
        """End a key at once; what runs with it may finish. Not the caller's own, and not the last one."""
        settings = core.settings
        known = next((key for key in settings.all_keys if key.name == name), None)
        if known is None:
            raise Unprocessable(f"there is no key {name!r}", "GET /router/keys lists them", 404)
        caller = core.guard.find(key_of(dict(request.headers.raw)))
        if caller is not None and caller.settings.sha256 == known.sha256:
            raise Unprocessable("this is the key that you are using", "end it with another admin key", 409)
        await change(
            dataclasses.replace(
                settings,
                keys=tuple(key for key in settings.keys if key.sha256 != known.sha256),
                api_key_sha256=tuple(h for h in settings.api_key_sha256 if h != known.sha256),
                admin_key_sha256=tuple(h for h in settings.admin_key_sha256 if h != known.sha256),
            )
        )
        return {"deleted": name}
