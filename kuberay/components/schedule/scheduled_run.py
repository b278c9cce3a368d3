"""One scheduled training: create a RayJob from the template, wait until it ends, and exit with its result.

The program runs in the pod of the CronJob and needs only the standard library. Exit code 0: the training succeeded. Exit code 3: it
failed, and another attempt would not help. Exit code 1: this pod could not do its work; the next pod of the Job continues with the
same RayJob.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SERVER = "https://kubernetes.default.svc"
POLL_SECONDS = 2.0
DONE, FAILED = 0, 3
MAX_ERRORS = 150
"""Number of consecutive failed reads (five minutes) after which the pod gives up."""

Json = dict[str, Any]


def say(text: str) -> None:
    """Print a line to the log of the pod, without buffering."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class ApiServer:
    """The RayJobs of one namespace."""

    def __init__(self, server: str = SERVER, account: Path = ACCOUNT) -> None:
        self.namespace = (account / "namespace").read_text().strip()
        self._url = f"{server}/apis/ray.io/v1/namespaces/{self.namespace}/rayjobs"
        self._account = account
        certificates = account / "ca.crt"
        tls = ssl.create_default_context(cafile=certificates) if certificates.exists() else None
        # The API server is inside the cluster, so the proxies in the environment must not be used.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))

    def get(self, name: str) -> Json:
        """Return one RayJob; raises OSError."""
        return self._request(f"{self._url}/{name}")

    def create(self, job: Json) -> None:
        """Create a RayJob; one that an earlier pod of this Job created stays. Raises OSError."""
        try:
            self._request(self._url, json.dumps(job).encode())
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise

    def _request(self, url: str, data: bytes | None = None) -> Json:
        # The token is read for each request, because the kubelet renews it.
        headers = {"Authorization": f"Bearer {(self._account / 'token').read_text()}", "Content-Type": "application/json"}
        request = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310
        with self._opener.open(request, timeout=30) as response:
            document: Json = json.load(response)
        return document


def rayjob(template: Json, name: str, owner: str, uid: str) -> Json:
    """The RayJob of one run; Kubernetes deletes it together with the Job that owns it."""
    metadata = template["metadata"]
    return {
        "apiVersion": template["apiVersion"],
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": metadata.get("labels", {}),
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": owner, "uid": uid}],
        },
        "spec": {key: value for key, value in template["spec"].items() if key not in ("suspend", "jobId")},
    }


def wait(server: ApiServer, name: str) -> Json:
    """Wait for the end of a RayJob and return its status; prints each state. Raises OSError after five minutes of failed reads."""
    printed, errors = "", 0
    while True:
        try:
            status = server.get(name).get("status", {})
            errors = 0
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                raise
            errors += 1
            if errors >= MAX_ERRORS:
                raise
            status = {}
        state = f"{status.get('jobDeploymentStatus', '')} {status.get('jobStatus', '')}".strip()
        if state and state != printed:
            say(f"RayJob {name}: {state}")
            printed = state
        if status.get("jobDeploymentStatus") in ("Complete", "Failed", "ValidationFailed"):
            return dict(status)
        time.sleep(POLL_SECONDS)


def run(server: ApiServer, template: str, owner: str, uid: str) -> int:
    """Create the RayJob of the Job `owner`, wait for it, and return the exit code; raises OSError."""
    # The operator creates a Job with the name of the RayJob, so the RayJob cannot have the name of this Job.
    name = f"{owner}-ray"
    server.create(rayjob(server.get(template), name, owner, uid))
    say(f"RayJob {name} created; its output: kubectl logs -f -n {server.namespace} job/{name}")
    status = wait(server, name)
    lines = [line for line in str(status.get("message", "")).splitlines() if line.strip()]
    if status["jobDeploymentStatus"] == "Complete":
        return DONE
    say("\n".join(lines[-20:]))
    say(f"error: RayJob {name} failed ({status.get('reason', 'no reason given')})")
    return FAILED


def main() -> int:
    """Run with the environment of the CronJob, and return the exit code."""
    try:
        return run(ApiServer(), os.environ["TEMPLATE"], os.environ["JOB"], os.environ["JOB_UID"])
    except urllib.error.HTTPError as error:
        say(f"error: the API server answered {error.code}: {error.read().decode(errors='replace')}")
    except OSError as error:
        say(f"error: the API server does not answer: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
