"""The alert log: a webhook receiver that writes each notification as one JSON line, for those who have no pager yet.

Standard library alone: it runs in any image with Python. `kubectl logs deployment/alert-log` reads it.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8080
MAX_BYTES = 4 * 1024 * 1024


class Receiver(BaseHTTPRequestHandler):
    """`POST /NAME`: the body is Alertmanager's webhook document. `GET`: alive."""

    timeout = 10

    def do_GET(self) -> None:
        self._answer(200)

    def do_POST(self) -> None:
        try:
            document = json.loads(self.rfile.read(min(int(self.headers["Content-Length"]), MAX_BYTES)))
            lines = [
                {
                    "receiver": self.path.strip("/"),
                    "status": alert["status"],
                    "alert": alert["labels"]["alertname"],
                    "severity": alert["labels"].get("severity"),
                    "summary": alert["annotations"].get("summary"),
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
        """Requests themselves are not worth a line."""

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1]) if len(sys.argv) > 1 else PORT), Receiver).serve_forever()
