"""What SkyPilot raised, as one of our errors with the step that mends it. Told by the names of its classes, so that
nothing of SkyPilot is imported for it."""

from __future__ import annotations

import re
from typing import Any, Final

from tuna_nb.backends.patience import Setback, retry_after_s
from tuna_nb.backends.skyserve.accounts import SERVER, server
from tuna_nb.errors import BackendError, CapacityError, ConflictError, CredentialsError, NotFoundError, TunaError

INSTALL: Final = "pip install 'tuna-nb[spot]'"
SIGN_IN: Final = {
    "aws": "aws configure (or aws sso login), then: sky check aws",
    "gcp": "gcloud auth application-default login, then: sky check gcp",
    "azure": "az login, then: sky check azure",
}
_ANY_SIGN_IN: Final = "sign in with the cloud's own tool (aws configure, gcloud auth, az login), then: sky check"
_ELSEWHERE: Final = "try another --region (several with commas), --gpu or --spots-cloud; serverless goes on serving"
_QUOTA: Final = "ask the cloud for spot GPU quota in that region, or try another --region or --spots-cloud"
_WORDS: Final = 400
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

_CREDENTIALS: Final = frozenset(
    {
        "NoCloudAccessError",
        "InvalidCloudCredentials",
        "InvalidCloudConfigs",
        "CloudUserIdentityError",
        "ClusterOwnerIdentityMismatchError",
        "PermissionDeniedError",
    }
)
_LOST: Final = frozenset({"ConnectionError", "Timeout", "ChunkedEncodingError", "ContentDecodingError"})
"""Of `requests`: the answer never came, or broke off."""


class Unregistered(BackendError):
    """SkyServe's controller did not register the service within the minute that SkyPilot gives it.

    Seen on a machine with too much to do; the controller may be dead, or a little late.
    """


def setback(exc: BaseException, what: str) -> Setback:
    """exc: of SkyPilot's SDK. what: was asked for, with the resource's name."""
    names = [kind.__name__ for kind in type(exc).__mro__]
    told = words(exc)
    if "HTTPError" in names and (response := getattr(exc, "response", None)) is not None:
        return _http(response, what)
    if "ServerTemporarilyUnavailableError" in names:
        busy = BackendError(f"skyserve: {what}: SkyPilot's API server is busy: {told}", "try again in a minute")
        return Setback(busy, passes=True, acted=False)
    if "ApiServerConnectionError" in names:
        return Setback(unreachable(what), passes=True, acted=False)
    if _LOST & set(names):
        lost = BackendError(f"skyserve: {what}: SkyPilot's API server broke off", _server_step())
        return Setback(lost, passes=True)
    return Setback(_definite(names, told, what), passes=False)


def unreachable(what: str) -> BackendError:
    """No API server answers, and none could be started."""
    where = server()
    at = f"at {_without_password(where)}" if where else "on this machine"
    return BackendError(f"skyserve: {what}: no SkyPilot API server answers {at}", _server_step())


def words(exc: BaseException) -> str:
    """SkyPilot's own, on one line, without colours."""
    return " ".join(_ESCAPES.sub("", str(exc)).split())[:_WORDS] or type(exc).__name__


def _http(response: Any, what: str) -> Setback:
    status = int(response.status_code)
    told = " ".join(_ESCAPES.sub("", _detail(response)).split())[:_WORDS]
    message = f"skyserve: {what}: {told} ({status})"
    if status in (401, 403):
        return Setback(CredentialsError(message, "sky api login"), passes=False)
    hint = "SkyPilot's API server refuses it; its own words are above" if status < 500 else _server_step()
    asked = response.headers.get("Retry-After")
    return Setback.of_status(BackendError(message, hint), status, retry_after_s(asked, 0.0))


def _detail(response: Any) -> str:
    try:
        body = response.json()
    except ValueError:
        return str(response.text)
    found = body.get("detail") or body.get("message") or body.get("error") if isinstance(body, dict) else body
    return str(found.get("message", found) if isinstance(found, dict) else found)


def _definite(names: list[str], told: str, what: str) -> TunaError:
    message, low = f"skyserve: {what}: {told}", told.lower()
    if "ModuleNotFoundError" in names or "ImportError" in names:
        return BackendError(f"skyserve: SkyPilot can't be imported: {told}", INSTALL)
    if "ApiServerAuthenticationError" in names:
        return CredentialsError(message, "sky api login")
    if "APIVersionMismatchError" in names:
        return BackendError(message, "sky api stop; sky api start; a remote server wants this machine's version")
    if _CREDENTIALS & set(names):
        cloud = next((cloud for cloud in SIGN_IN if cloud in low), None)
        return CredentialsError(message, SIGN_IN[cloud] if cloud else _ANY_SIGN_IN)
    if any(tool in low for tool in ("rsync", "ssh is not", "openssh")) and "not" in low:
        return BackendError(message, "apt-get install rsync openssh-client, where SkyPilot's API server runs")
    if "quota" in low or "limitexceeded" in low:
        return CapacityError(message, _QUOTA)
    if "ResourcesUnavailableError" in names:
        return CapacityError(message, _ELSEWHERE)
    if "network error" in low or "NetworkError" in names:
        return BackendError(
            message, "the API server must reach the internet (it tries https://1.1.1.1 and 8.8.8.8)"
        )
    if "ClusterNotUpError" in names:
        return BackendError(message, "SkyServe's controller does not answer: sky status -r shows it")
    if "RequestCancelled" in names:
        return BackendError(f"skyserve: {what} was cancelled at SkyPilot's API server", "try again")
    if "failed to register service" in low or "failed to wait for service initialization" in low:
        return Unregistered(
            message, "its machine may have too much to do: deploy again; serverless goes on serving"
        )
    if "is already running. please specify a different name" in low:
        return ConflictError(message)
    if "does not exist" in low or "cannot find service" in low:
        return NotFoundError(message)
    return BackendError(message, "SkyPilot's own words are above; `sky api logs` has more")


def _server_step() -> str:
    if server():
        return f"is {SERVER} right, and its server up? sky api info"
    return "sky api stop; sky api start, and `sky api logs` says why"


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)
