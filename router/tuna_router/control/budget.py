"""`/router/budget`: how much more the router may count before it uses serverless less, by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request

from tuna_router.books.budget import Limit, parse_limit
from tuna_router.control.errors import Unprocessable, body_of, read_json
from tuna_router.control.models import BudgetIn, BudgetOut
from tuna_router.errors import SettingsError

if TYPE_CHECKING:
    from tuna_router.app import Router

_HINT = 'send {"left_usd": 3.2, "serverless_use": "cover", "note": "..."}, or null for none'


def add_budget(app: FastAPI, router: Router) -> None:
    """The endpoints."""
    core = router.core

    def shown() -> dict[str, Any]:
        return {"budget": core.budget.to_json(), "serverless_use": core.serverless_use.value}

    async def put(limit: Limit | None) -> dict[str, Any]:
        await router.put_budget(limit)
        return shown()

    @app.get("/router/budget", response_model=BudgetOut)
    async def get_budget() -> dict[str, Any]:
        """The budget and what was counted since it was put; `serverless_use` as it is in effect now."""
        return shown()

    schema = {"anyOf": [BudgetIn.model_json_schema(), {"type": "null"}]}

    @app.put("/router/budget", response_model=BudgetOut, openapi_extra=body_of(schema))
    async def put_budget(request: Request) -> dict[str, Any]:
        """From now on this budget, instead of the one before; null: none."""
        data = await read_json(request, or_null=True)
        try:
            limit = None if data is None else parse_limit(data, core.meter.wall())
        except SettingsError as error:
            raise Unprocessable(error.message, error.hint) from error
        except ValueError as error:
            raise Unprocessable(str(error), _HINT) from error
        return await put(limit)

    @app.delete("/router/budget", response_model=BudgetOut)
    async def delete_budget() -> dict[str, Any]:
        """No budget."""
        return await put(None)
