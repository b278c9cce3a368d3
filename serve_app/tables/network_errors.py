"""Errors of buckets and web servers, with messages that name the fix."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from serve_app.errors import BackendUnavailable, IrisApiError, UsageError

CREDENTIALS_SECRET = "iris-data-credentials"  # noqa: S105 - the name of the Secret
COMPONENT = "kuberay/components/data-source"

_STATUS = re.compile(r"google::cloud::Status\((\w+): ")
_AWS = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
_CURL = re.compile(r"(?:curlCode: |CURL error \[)(\d+)")

_KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS to the file of a service account's key",
}
_S3_SOURCES = (
    *("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SHARED_CREDENTIALS_FILE"),
)
"""Environment variables with credentials for S3."""


def unreachable(name: str, why: str) -> BackendUnavailable:
    """The error for a connection that is blocked or refused, or timed out."""
    if _in_pod():
        fix = f"the NetworkPolicy of jobs may block the address; add the component {COMPONENT}, or add the address to its list"
    else:
        fix = "check the address, the network, and HTTPS_PROXY if you need a proxy"
    return BackendUnavailable(f"{name} cannot be reached ({why}): {fix}")


def unknown_host(name: str, host: str) -> BackendUnavailable:
    """The error for a host that DNS does not know, and for DNS without an answer."""
    fix = "correct the address"
    if _in_pod():
        fix += ", or let the cluster's DNS resolve it"
    return BackendUnavailable(f"{name} cannot be reached: DNS does not know the host {host or 'in it'}; {fix}")


def untrusted(name: str) -> BackendUnavailable:
    """The error for a certificate of another host, an expired certificate, or an unknown certificate authority."""
    return BackendUnavailable(
        f"{name} cannot be read: the certificate of the server is not trusted; correct the address, "
        "or name the file of its certificate authority with SSL_CERT_FILE"
    )


def missing(name: str) -> UsageError:
    """The error for a file, a key or a bucket that does not exist."""
    return UsageError(f"{name} does not exist: correct the bucket or the key, and do not encode the key (write a space, not %20)")


def denied(name: str, scheme: str) -> UsageError:
    """The error for missing or wrong credentials, and for credentials without permission."""
    if not has_credentials(scheme):
        return UsageError(
            f"{name} needs credentials: set {_KEYS[scheme]} (in a cluster, in the Secret {CREDENTIALS_SECRET}), "
            "or give the job a service account"
        )
    return UsageError(
        f"these credentials have no permission to read {name}, or it does not exist: "
        f"grant the account permission to read and list the bucket, or correct the keys in {CREDENTIALS_SECRET}"
    )


def has_credentials(scheme: str) -> bool:
    """Whether the environment of this process or a file in the user's home has credentials."""
    if scheme == "s3":
        files = ("~/.aws/credentials", "~/.aws/config")
        return any(map(os.environ.get, _S3_SOURCES)) or any(os.path.exists(os.path.expanduser(file)) for file in files)
    file = "~/.config/gcloud/application_default_credentials.json"
    return bool(os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")) or os.path.exists(os.path.expanduser(file))


def bucket_error(name: str, message: str) -> IrisApiError | None:
    """The error for a message of pyarrow's S3 or Google client; None for a message of another filesystem."""
    aws, google = _AWS.search(message), _STATUS.search(message)
    if aws is None and google is None:
        return None
    scheme = "s3" if aws else "gs"
    if google is not None and ("OAuth2 access token" in message or "credentials file" in message):
        return _no_token(name, message)
    if curl := _CURL.search(message):
        return _curl_error(name, int(curl[1]), message)
    code = aws[1] if aws is not None else google[1] if google is not None else ""
    if code == "UNKNOWN" and aws is not None:
        code = _BY_STATUS.get(aws[2] or "", code)
    if "equester pays" in message:
        return UsageError(
            f"{name} is in a bucket that bills the reader, which is not supported: "
            "copy the table to your own bucket, or name a signed https:// address"
        )
    if code in _SENTENCES:
        return _SENTENCES[code](name, scheme)
    return BackendUnavailable(f"{name} cannot be used: the storage answered {code}; try again, or check the status of the service")


def _no_token(name: str, message: str) -> IrisApiError:
    file = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if file:
        return UsageError(
            f"{name} needs credentials, and {file} of GOOGLE_APPLICATION_CREDENTIALS cannot be used: correct the file"
        )
    if "CURL" in message or "metadata" in message:
        return denied(name, "gs")
    return UsageError(f"{name} needs credentials, and Google refused those of this job: renew the key or the service account")


def _curl_error(name: str, code: int, message: str) -> IrisApiError:
    if code == 6:
        host = re.search(r"resolve host: (\S+)", message)
        return unknown_host(name, host[1] if host else "")
    if code in (35, 51, 58, 60, 77, 83):
        return untrusted(name)
    return unreachable(name, "the connection timed out" if code == 28 else "no connection")


def _expired(name: str, _scheme: str) -> IrisApiError:
    return UsageError(f"{name} cannot be read: the credentials are wrong or have expired; renew those in {CREDENTIALS_SECRET}")


def _other_region(name: str, _scheme: str) -> IrisApiError:
    return UsageError(f"{name} is in another region: set AWS_REGION to the region of the bucket")


def _busy(name: str, _scheme: str) -> IrisApiError:
    return BackendUnavailable(f"{name} cannot be read: the storage is overloaded or down; try again later")


_BY_STATUS = {"301": "REDIRECT", "400": "BAD_CREDENTIALS", "403": "ACCESS_DENIED", "404": "NOT_FOUND", "503": "SLOW_DOWN"}
"""Codes for the status of an S3 answer to a HEAD request, which has no explanation."""

_SENTENCES: dict[str, Callable[[str, str], IrisApiError]] = {
    **dict.fromkeys(("ACCESS_DENIED", "PERMISSION_DENIED", "UNAUTHENTICATED"), denied),
    **dict.fromkeys(("NO_SUCH_BUCKET", "NO_SUCH_KEY", "NOT_FOUND"), lambda name, _: missing(name)),
    **dict.fromkeys(("INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID"), _expired),
    **dict.fromkeys(("EXPIRED_TOKEN", "BAD_CREDENTIALS", "REQUEST_EXPIRED"), _expired),
    "REDIRECT": _other_region,
    **dict.fromkeys(("SLOW_DOWN", "SERVICE_UNAVAILABLE", "UNAVAILABLE", "INTERNAL", "INTERNAL_FAILURE"), _busy),
}


def _in_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ
