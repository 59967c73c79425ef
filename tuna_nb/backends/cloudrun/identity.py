"""ID tokens, which open a private service: made for its URL, good for about an hour.

A service account's key, an impersonated service account and Google's own machines make them. A person's credentials
can't make one for an audience: then `gcloud` is asked, whose token Cloud Run takes too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any, Final

from tuna_nb.errors import CredentialsError

IMPERSONATE: Final = "CLOUDSDK_AUTH_IMPERSONATE_SERVICE_ACCOUNT"
SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
_GCLOUD_S: Final = 60
_HINT: Final = (
    "gcloud auth login, or --impersonate SERVICE_ACCOUNT, or GOOGLE_APPLICATION_CREDENTIALS=<its key file>"
)


def mint(credentials: Any, audience: str, impersonate: str | None = None) -> tuple[str, float]:
    """A token and the Unix seconds of its end. Blocks. audience: the service's URL.

    Raises CredentialsError, and what google.auth raises.
    """
    from google.auth import jwt

    token = _token(credentials, audience, impersonate or os.environ.get(IMPERSONATE))
    decode: Any = jwt.decode
    return token, float(decode(token, verify=False)["exp"])


def _token(credentials: Any, audience: str, impersonate: str | None) -> str:
    from google.auth import compute_engine, impersonated_credentials
    from google.auth.transport.requests import Request
    from google.oauth2 import id_token, service_account

    # google.auth is typed in part only.
    impersonated: Any = impersonated_credentials
    account: Any = service_account
    tokens: Any = id_token
    asked = Request()
    if impersonate:
        credentials = impersonated.Credentials(credentials, impersonate, SCOPES)
    if isinstance(credentials, impersonated_credentials.Credentials):
        made = impersonated.IDTokenCredentials(credentials, audience, include_email=True)
    elif isinstance(credentials, service_account.Credentials):
        made = account.IDTokenCredentials(
            credentials.signer, credentials.service_account_email, credentials._token_uri, audience
        )
    elif isinstance(credentials, compute_engine.Credentials):
        made = tokens.fetch_id_token_credentials(audience, asked)
    else:
        return _of_gcloud()
    made.refresh(asked)
    return str(made.token)


def _of_gcloud() -> str:
    program = shutil.which("gcloud")
    if program is None:
        raise CredentialsError("cloudrun: your credentials make no ID tokens, and gcloud is not installed", _HINT)
    try:
        done = subprocess.run(
            [program, "auth", "print-identity-token"],
            capture_output=True,
            text=True,
            timeout=_GCLOUD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CredentialsError(f"cloudrun: gcloud made no ID token in {_GCLOUD_S} s", _HINT) from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[:300]
        raise CredentialsError(f"cloudrun: gcloud made no ID token: {said}", _HINT)
    return done.stdout.strip()
