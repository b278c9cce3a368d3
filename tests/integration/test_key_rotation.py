"""A changed key, with the application as a user starts it: two replicas that read it from a folder like a mounted Secret."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import httpx2

from serve_app.artifacts.store import Store
from tests.support.figures import note
from tests.support.load import open_loop
from tests.support.models import A_FLOWER, publish_iris
from tests.support.processes import replicas
from tests.support.server import KEY, serving
from tests.support.waiting import until


class MountedSecret:
    """A folder as the kubelet keeps it: each name leads through `..data`, one link, to the folder of the newest content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def set(self, **data: str) -> None:
        self._count += 1
        content = self.folder / f"..{self._count}"
        content.mkdir(parents=True)
        for name, value in data.items():
            (content / name).write_text(value)
        link = self.folder / "..new"
        link.symlink_to(content.name)
        os.replace(link, self.folder / "..data")
        for name in data:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")


def test_a_changed_key_is_taken_by_every_replica_without_a_restart_or_a_refused_request(tmp_path: Path) -> None:
    store, secret = Store(tmp_path / "models"), MountedSecret(tmp_path / "secrets")
    publish_iris(store, onnx=True)
    old, new = KEY, secrets.token_hex(32)
    secret.set(API_KEY=old)
    folder = tmp_path / "server"
    folder.mkdir()
    variables = {"API_KEY": "", "IRIS_SECRETS_DIR": str(secret.folder)}
    variables["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"  # a secret beside those of the folder; nothing asks for it
    with serving(store.root, folder, replicas=2, **variables) as server:

        def statuses(key: str) -> set[int]:
            url, headers = f"{server.url}/predict", {"X-API-Key": key}
            return {httpx2.post(url, json=A_FLOWER, headers=headers, timeout=30).status_code for _ in range(10)}

        before = replicas(server.process.pid)
        assert len(before) == 2
        assert (statuses(old), statuses(new)) == ({200}, {403})
        with open_loop(server.url, A_FLOWER, key=old, rate=20, retry=False, keep_alive=False) as old_clients:
            secret.set(API_KEY=new, API_KEY_PREVIOUS=old)
            until(lambda: statuses(new) == {200}, seconds=60, what="replicas that know the new key")
        with open_loop(server.url, A_FLOWER, key=new, rate=20, retry=False, keep_alive=False) as new_clients:
            secret.set(API_KEY=new, API_KEY_PREVIOUS="")
            until(lambda: statuses(old) == {403}, seconds=60, what="replicas that refuse the old key")
        note(f"old key: {old_clients}; new key: {new_clients}")
        assert old_clients.failures == new_clients.failures == []
        assert replicas(server.process.pid) == before
