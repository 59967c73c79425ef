"""The Hugging Face hub: is a model there, and may we have its weights? Asked before anything costs money.

Source: the hub's public API, `GET /api/models/{id}`, whose `gated` is false, "auto" or "manual".
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from tuna_nb import tls
from tuna_nb.errors import RequestError

URL: Final = "https://huggingface.co"
_TIMEOUT_S: Final = 5.0
_GATED: Final = ("meta-llama/", "google/gemma-", "google/medgemma-", "CohereLabs/", "bigcode/starcoder")
"""Beginnings of names known to be gated on 2026-11-21, for where the hub can't be reached."""


@dataclass(frozen=True, slots=True)
class Access:
    """gated: weights only for who shows a token. known: the hub itself said so, and it was not assumed by name."""

    gated: bool
    known: bool


async def access(model: str, token: str | None) -> Access:
    """What the hub says of a model; only names that look like the hub's (owner/name) are asked about.

    Raises RequestError for a model that is not there, and for one that this token does not open.
    """
    import httpx

    if "/" not in model:
        return Access(gated=False, known=False)
    base = (os.environ.get("HF_ENDPOINT") or URL).rstrip("/")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        async with httpx.AsyncClient(verify=tls.trusted(), timeout=_TIMEOUT_S, follow_redirects=True) as http:
            answer = await http.get(f"{base}/api/models/{model}", headers=headers)
            if answer.status_code == 200 and answer.json().get("gated"):
                # The description is everybody's; a file is not.
                opened = await http.head(f"{base}/{model}/resolve/main/config.json", headers=headers)
                if token is not None and opened.status_code in (401, 403):
                    raise RequestError(
                        f"{model} is gated, and your Hugging Face account has no access to it",
                        f"ask for it at {URL}/{model}, then try again",
                    )
    except (httpx.HTTPError, ValueError):
        return Access(gated=model.startswith(_GATED), known=False)
    if answer.status_code == 200:
        return Access(gated=bool(answer.json().get("gated")), known=True)
    if answer.status_code in (401, 404):
        also = "" if token else ", or it is private: then export HF_TOKEN=<your token>"
        raise RequestError(f"there is no model {model} on Hugging Face", f"check the spelling{also}")
    return Access(gated=model.startswith(_GATED), known=False)
