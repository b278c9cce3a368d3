"""Check a server against the Open Inference Protocol v2, over REST and gRPC, and print a table of what it keeps.

    python -m tests.conformance --url http://host:8000 --model NAME [--grpc host:9000] [--header 'X-API-Key: KEY'] [--request FILE]

REST needs nothing but Python, gRPC the packages grpcio and protobuf. The exit code is 1 when a required point is not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conformance import rest_points
from tests.conformance.points import Result, as_documents, as_table, run
from tests.conformance.rest_client import RestServer

A_FLOWER: dict[str, Any] = {"inputs": [{"name": "input-0", "datatype": "FP64", "shape": [1, 4], "data": [[5.1, 3.5, 1.4, 0.2]]}]}
"""A request for a model of the iris flowers."""


def arguments() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", help="where REST is answered, for example http://127.0.0.1:8000")
    parser.add_argument("--grpc", help="host and port where gRPC is answered, without TLS")
    parser.add_argument("--model", help="the name of a model that is ready")
    parser.add_argument("--header", action="append", default=[], help="a header of every request, 'Name: value'; metadata in gRPC")
    parser.add_argument("--request", type=Path, help="a request in JSON that the model answers; one of the iris flowers by default")
    parser.add_argument("--json", type=Path, help="a file that takes the results as JSON, for --columns")
    parser.add_argument("--columns", nargs="+", help="print one table of results kept with --json, as NAME=FILE; asks no server")
    return parser


def check(options: argparse.Namespace) -> list[Result]:
    """The results of all points of the servers that the options name."""
    request = A_FLOWER if options.request is None else json.loads(options.request.read_text())
    headers = {name.strip(): value.strip() for name, _, value in (each.partition(":") for each in options.header)}
    rest = RestServer(options.url.rstrip("/"), options.model, request, headers) if options.url else None
    results = run(rest_points.POINTS, rest) if rest else []
    if options.grpc:
        from tests.conformance import grpc_points  # not above: REST needs no package

        results += run(grpc_points.POINTS, grpc_points.GrpcServer(options.grpc, options.model, request, headers, rest))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 1 when a required point is not kept, 2 when no server is named."""
    options = arguments().parse_args(argv)
    if options.columns:
        files = [each.partition("=") for each in options.columns]
        print(as_table({name: json.loads(Path(path).read_text()) for name, _, path in files}))
        return 0
    if not (options.url or options.grpc) or not options.model:
        print("name a server with --url or --grpc, and a model with --model", file=sys.stderr)
        return 2
    results = check(options)
    documents = as_documents(results)
    if options.json:
        options.json.write_text(json.dumps(documents, indent=1, ensure_ascii=False))
    print(as_table({"result": documents}))
    failed = [each for each in results if each.outcome == "fail" and each.point.required]
    counts = {outcome: sum(each.outcome == outcome for each in results) for outcome in ("pass", "fail", "skip")}
    print(f"\n{counts['pass']} kept, {counts['fail']} not kept ({len(failed)} of them required), {counts['skip']} do not apply")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
