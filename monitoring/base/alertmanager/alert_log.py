"""The alert log: a webhook receiver that writes each alert of a notification as one JSON line to standard output.

It stands in for a pager and needs the standard library alone. `kubectl logs deployment/alert-log` shows the lines.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8080
MAX_BYTES = 4 * 1024 * 1024


class Receiver(BaseHTTPRequestHandler):
    """`POST /RECEIVER` takes Alertmanager's webhook document and answers 200, or 400 when it cannot be read; `GET` answers 200."""

    timeout = 10

    def do_GET(self) -> None:
        """The readiness probe."""
        self._answer(200)

    def do_POST(self) -> None:
        """Write one line for each alert in the body."""
        try:
            document = json.loads(self.rfile.read(min(int(self.headers["Content-Length"]), MAX_BYTES)))
            lines = [
                {
                    "receiver": self.path.strip("/"),
                    "status": alert["status"],
                    "alert": alert["labels"]["alertname"],
                    "severity": alert["labels"].get("severity"),
                    "summary": alert["annotations"].get("summary"),
                    "description": alert["annotations"].get("description"),
                    "runbook": alert["annotations"].get("runbook_url"),
                    "labels": alert["labels"],
                    "since": alert["startsAt"],
                }
                for alert in document["alerts"]
            ]
        except (ValueError, KeyError, TypeError):
            self._answer(400)
            return
        for line in lines:
            sys.stdout.write(json.dumps(line, sort_keys=True) + "\n")
        sys.stdout.flush()
        self._answer(200)

    def log_message(self, *_: object) -> None:
        """Requests are not logged: standard output holds the alerts alone."""

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1]) if len(sys.argv) > 1 else PORT), Receiver).serve_forever()
