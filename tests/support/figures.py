"""What the tests measured: noted while they run, and written as a table of promises.

    python -m tests.support.figures docs/reliability.md     after `make test test-integration test-faults`

A row whose test has not run since the table was last written keeps its figure.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / "build" / "figures.jsonl"
NONE = "not measured yet"

PROMISES = (
    (
        "Serving",
        (
            ("A killed replica: after one retry no request is lost", "faults::a_killed_replica_costs_no_request_after_one_retry"),
            (
                "A frozen replica: replaced by itself, of the requests at most 1 % are lost after one retry",
                "faults::a_frozen_replica_is_replaced_and_costs_few_requests_after_one_retry",
            ),
            ("A killed HAProxy: back by itself within a minute", "faults::a_killed_haproxy_comes_back_by_itself"),
            (
                "A corrupt or missing pointer: not one answer changes",
                "faults::a_corrupt_pointer_changes_no_answer_and_a_good_one_is_followed",
            ),
            ("MLflow hangs all the time: nobody notices", "faults::a_corrupt_pointer_changes_no_answer_and_a_good_one_is_followed"),
            ("200 clients that send slowly: others lose nothing", "faults::clients_that_send_slowly_or_never_end_disturb_nobody"),
            ("Bodies without end, giant headers: 413, 400", "faults::bodies_without_end_and_giant_headers_are_cut_off"),
            ("20 models replaced under load: 0 failed, 0 mislabelled", "integration::models_are_replaced_under_load"),
        ),
    ),
    (
        "Keys and limits",
        (
            ("A new key known, a revoked one dead, within 10 s", "faults::keys_come_and_go_within_ten_seconds"),
            ("The limit of a key over two replicas, within 5 %", "faults::the_limit_of_a_key_holds_over_both_replicas"),
            ("The time of a refusal tells nothing about a key", "test_keys::the_time_of_a_refusal_does_not_tell"),
        ),
    ),
    (
        "Models and requests",
        (
            ("1,000 hostile models: all refused, nothing executed", "test_hostile_models::more_than_a_thousand_were_tried"),
            ("10,000 bad requests: no 5xx, nothing undocumented", "test_hostile_clients::ten_thousand_bad_requests"),
            ("The whole OpenAPI document fuzzed, with a key and without", "test_schema::every_answer_is_as_documented"),
        ),
    ),
    (
        "The store",
        (
            ("A publisher killed at each of its steps: old or new, nothing between", "test_store_crash"),
            ("A full volume: the publisher fails, the pointer stays", "test_store_volume"),
        ),
    ),
)

CLUSTER = (
    "On a cluster",
    (
        ("A worker pod deleted: 0 failed", "e2e::a_worker_that_is_deleted"),
        ("A worker pod killed: 0 failed after one retry, at most 0.1 % without", "e2e::a_worker_that_is_killed"),
        ("One worker evicted: 0 failed; the second eviction is refused", "e2e::of_two_evictions_the_second_is_refused"),
        ("The operator killed: 0 failed, and it takes up its work again", "e2e::a_killed_operator"),
        (
            "The API server away for two minutes: 0 failed meanwhile; at its return, silent for at most a minute",
            "e2e::is_gone_for_a_while[apiserver",
        ),
        ("The kubelet restarted: 0 failed, no pod replaced", "e2e::is_gone_for_a_while[kubelet"),
        ("containerd restarted: 0 failed, no pod replaced", "e2e::is_gone_for_a_while[containerd"),
        ("The memory of a replica used up: 0 failed after one retry", "e2e::a_replica_that_runs_out_of_memory"),
        ("DNS away for a minute: 0 failed", "e2e::names_are_not_resolved_for_a_minute"),
        ("The head killed, without Redis: heals by itself within 180 s", "e2e::the_loss_of_the_head_without_redis"),
        ("The head killed, with Redis: 0 failed, workers stay", "e2e::the_loss_of_the_head_is_not_felt_with_redis"),
        ("Another model live, and back: 0 failed, no pod replaced", "e2e::a_new_model_goes_live_and_back"),
        ("2 to 4 to 2 replicas: 0 failed", "e2e::more_and_fewer_replicas"),
        ("An upgrade to a second Ray cluster: 0 failed", "e2e::a_changed_setting_rolls_out"),
        ("Prometheus and Alertmanager gone: 0 failed", "e2e::removing_the_monitoring"),
        ("Closed doors: who reaches which port, and no other", "e2e::each_pod_reaches_what_it_needs"),
        ("No job without the token, from any pod", "e2e::nobody_submits_a_job"),
        ("Service accounts may do what they need", "e2e::no_account_may_do_more"),
    ),
)


def note(text: str) -> None:
    """Keep what the running test measured."""
    print(text)
    line = {"test": os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0], "at": datetime.now(UTC).date().isoformat()}
    FILE.parent.mkdir(exist_ok=True)
    with FILE.open("a") as file:
        file.write(json.dumps({**line, "figure": text}) + "\n")


def is_of(test: str, wanted: str) -> bool:
    """Whether `tests/faults/test_x.py::test_a[b]` is what a row names: a part of its folder or file, and of its name."""
    where, _, name = wanted.partition("::")
    file, _, full = test.partition("::")
    return where in file and name in full


def table(noted: list[dict[str, str]], before: dict[str, str]) -> str:
    parts = []
    for heading, rows in (*PROMISES, CLUSTER):
        parts += [f"## {heading}\n", "| promise | test | last figure |\n| --- | --- | --- |"]
        for promise, wanted in rows:
            found = [line for line in noted if is_of(line["test"], wanted)]
            figure = f"{found[-1]['figure']} ({found[-1]['at']})" if found else before.get(promise, NONE)
            parts.append(f"| {promise} | `{wanted}` | {figure} |")
        parts.append("")
    return "\n".join(parts)


def figures_in(text: str) -> dict[str, str]:
    cells = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip(): row[2].strip() for row in cells if len(row) == 3}


def main(page: str) -> None:
    path = Path(page)
    text = path.read_text()
    head, _, rest = text.partition("<!-- figures -->\n")
    tail = rest.partition("<!-- end of figures -->")[2]
    noted = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    body = table(noted, figures_in(rest))
    path.write_text(f"{head}<!-- figures -->\n{body}<!-- end of figures -->{tail}")


if __name__ == "__main__":
    main(*sys.argv[1:])
