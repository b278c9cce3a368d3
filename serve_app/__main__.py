"""`python -m serve_app`: the application on this machine, in the foreground, until Ctrl-C. `--help` tells the rest."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from serve_app.errors import IrisApiError
from serve_app.rayserve.isolation import isolated_environment
from serve_app.settings import SettingsError, load_settings, table

FLAGS = Path(__file__).parent / "rayserve" / "serve.env"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve_app", description=__doc__)
    parser.add_argument(
        "command",
        nargs="?",
        choices=("serve", "settings", "key"),
        default="serve",
        help="serve, print all settings as a table, or make an API key",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s; 0.0.0.0 for all)")
    parser.add_argument("--port", help="port (default: PORT, else 8000)")
    parser.add_argument("--replicas", type=int, help="replicas (default: IRIS_REPLICAS, else 1)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="with settings: write the table to FILE")
    parser.add_argument("--name", help="with key: whose key it is")
    parser.add_argument("--days", type=float, help="with key: how long it is good (default: until it is removed)")
    parser.add_argument("--file", type=Path, help="with key: the file of keys (IRIS_API_KEYS_FILE) to put its hash into")
    parser.add_argument("--revoke", action="store_true", help="with key: remove every key of this name from the file")
    chosen = parser.parse_args(arguments)
    if chosen.command == "settings":
        text = f"# Settings\n\nRead from the environment by each replica. `make docs-settings` writes this page.\n\n{table()}"
        if chosen.write is None:
            sys.stdout.write(text)
        else:
            chosen.write.write_text(text)
        return 0
    if chosen.command == "key":
        return key(parser, chosen)
    if chosen.replicas is not None:
        os.environ["IRIS_REPLICAS"] = str(chosen.replicas)
    try:
        settings = load_settings()
        port = read_port(chosen.port)
        os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "1")  # nobody else sends requests here
        read_flags(FLAGS)
        with isolated_environment(port):
            from serve_app import deployment
            from serve_app.rayserve.launcher import serve_until_stopped  # after the flags: Ray Serve reads them when it is imported

            serve_until_stopped(lambda: deployment.app, settings, name=deployment.APPLICATION, host=chosen.host, port=port)
    except IrisApiError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def key(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    """Make a key and show it once, or remove the keys of a name; the file keeps hashes only."""
    from serve_app.http.auth import KeysError, change_file, make_key

    if not chosen.name or (chosen.revoke and chosen.file is None):
        parser.error("key needs --name" if not chosen.name else "--revoke needs --file")
    try:
        if chosen.revoke:
            removed = change_file(chosen.file, remove=chosen.name)
            sys.stderr.write(f"{removed} key(s) of {chosen.name} removed from {chosen.file}\n")
            return 0 if removed else 1
        made, entry = make_key(chosen.name, days=chosen.days)
        if chosen.file is not None:
            change_file(chosen.file, add=entry)
            sys.stderr.write(f"its hash is in {chosen.file}; the key itself is shown this once:\n")
        else:
            sys.stderr.write(f"put this into the list in your file of keys: {json.dumps(entry)}\n")
        sys.stdout.write(f"{made}\n")
    except KeysError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def read_port(given: str | None) -> int:
    """The port of `--port`, else of PORT, else 8000; raises SettingsError."""
    text = given or os.environ.get("PORT") or "8000"
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise SettingsError(f"{'--port' if given else 'PORT'}: '{text[:20]}' is no port; give a number from 1 to 65535")
    return int(text)


def read_flags(path: Path) -> None:
    """Set the flags of Ray Serve that the environment does not set already."""
    for line in path.read_text().splitlines():
        name, found, value = line.partition("=")
        if found and not line.startswith("#"):
            os.environ.setdefault(name, value.strip('"'))
    if sys.platform != "linux":
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0"  # its HAProxy is built for Linux only


if __name__ == "__main__":
    sys.exit(main())
