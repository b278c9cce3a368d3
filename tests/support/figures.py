"""The figures that tests measure: recorded while they run, and written into the tables of promises in docs/.

    python -m tests.support.figures     after `make test test-hostile test-timing test-integration test-faults`

A row whose test has not run since the table was last written keeps its figure. One whose test failed says so.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / "build" / "figures.jsonl"
NONE = "not measured yet"
MOST = 4
"""Figures that are shown for a row; of more there is just the number of tests."""

Rows = tuple[tuple[str, str], ...]
"""A promise, and the test that tries to break it: a part of its file, `::`, a part of its name."""
Groups = tuple[tuple[str, Rows], ...]

PROMISES: Groups = (
    (
        "Serving",
        (
            ("A killed replica: after one retry no request is lost", "faults::a_killed_replica_costs_no_request_after_one_retry"),
            (
                "A frozen replica: replaced by itself, of the requests at most 1 % are lost after one retry",
                "faults::a_frozen_replica_is_replaced_and_costs_few_requests_after_one_retry",
            ),
            (
                "A killed or frozen HAProxy: another one within 5 s",
                "faults::a_haproxy_that_is_killed_or_frozen_is_replaced_within_five_seconds",
            ),
            (
                "HAProxy and a replica killed together: the new HAProxy knows the new replica",
                "faults::a_haproxy_that_is_killed_together_with_a_replica",
            ),
            (
                "One of two machines dies, with resets or silently: its replica starts on the other, 0 lost after one retry",
                "faults::a_machine_that_dies_is_replaced_on_the_other",
            ),
            ("20 models replaced under load: 0 failed, 0 mislabelled", "integration::models_are_replaced_under_load"),
            (
                "The clock steps by an hour, either way: no request is refused or let in by that",
                "http/test_rate_window::a_step_of_the_clock",
            ),
        ),
    ),
    (
        "Load",
        (
            (
                "2 and 5 times the capacity: at least 80 % of it is answered right, the rest refused with 429 within 100 ms, "
                "all well again within 10 s",
                "faults::requests_beyond_the_capacity_are_refused_at_once",
            ),
            ("30,000 requests: none wrong, nothing left behind", "faults::thirty_thousand_requests_leave_nothing_behind"),
            (
                "1,000,000 requests: none wrong, memory of a replica grows by less than 1 MB per 100,000",
                "soak::a_million_requests_leave_nothing_behind",
            ),
        ),
    ),
    (
        "The store and MLflow",
        (
            (
                "A corrupt or missing pointer, while MLflow hangs: not one answer changes",
                "faults::a_corrupt_pointer_changes_no_answer_and_a_good_one_is_followed",
            ),
            ("A publisher killed at each of its steps: old or new, nothing between", "test_store_crash::killed_at_any_call"),
            ("A publisher killed from outside at any moment: the store is whole", "test_store_crash::killed_from_outside"),
            ("A publisher whose disk fails at each of its steps: nothing changes, and it says so", "test_store_crash::disk_fails"),
            ("A full volume: the publisher fails, the pointer stays", "test_store_volume::on_a_full_disk"),
            ("A full volume while it serves: 0 failed", "faults::a_full_volume_costs_no_answer"),
            (
                "An empty store, and MLflow hangs, fails, is slow, is down: live, 503, and the model is found later",
                "faults::with_an_empty_store_and_mlflow_unwell",
            ),
            ("The registry names an unknown version: refused, the served one stays", "test_mlflow_source::an_unknown_version"),
        ),
    ),
)

SECURITY: Groups = (
    (
        "Keys and limits",
        (
            ("A new key known, a revoked one dead, within 10 s", "faults::keys_come_and_go_within_ten_seconds"),
            ("A key is good between its dates, also when the clock steps by an hour", "test_auth::a_step_of_the_clock"),
            ("The limit of a key over two replicas, within 5 %", "faults::the_limit_of_a_key_holds_over_both_replicas"),
            ("The time of a refusal tells nothing about a key", "test_key_timing::the_time_of_a_refusal_does_not_tell"),
            ("A leak in the time would be seen", "test_key_timing::the_measure_of_time_sees_a_leak"),
            ("Refusals without a right key are all alike", "test_hostile_clients::refusals_without_a_right_key_are_all_alike"),
            (
                "A forwarded address is believed from configured proxies only",
                "test_rate_limit::a_forwarded_address_is_believed_only",
            ),
            ("Production without a good key does not start", "test_settings::a_wrong_setting_is_one_sentence"),
            ("A key that can be guessed is refused", "test_key_strength::a_key_that_can_be_guessed"),
        ),
    ),
    (
        "Requests",
        (
            (
                "10,000 bad requests: no 5xx, nothing undocumented, no input repeated",
                "test_hostile_clients::ten_thousand_bad_requests",
            ),
            ("The whole OpenAPI document fuzzed, with a key and without", "test_schema::every_answer_is_as_documented"),
            ("Bodies without end: 413 at once, bounded in bytes, time and memory", "test_bodies::a_body_without_end"),
            ("A body that trickles: 408", "test_bodies::a_body_that_trickles"),
            ("The same without a key", "test_bodies::who_shows_no_key_cannot_keep_the_connection"),
            (
                "No body of 16 MB, right or wrong, plain or gzip, delays another client by 50 ms",
                "test_standstill::no_body_holds_up_another_client",
            ),
            (
                "The same for requests of the Open Inference Protocol, in JSON, in bytes, in deflate",
                "test_standstill::no_tensors_hold_up_another_client",
            ),
            (
                "Thousands of hostile tensors: one error of the protocol each, no value repeated, no memory left behind",
                "test_hostile_tensors::thousands_of_hostile_tensors",
            ),
            (
                "1,000 generated gzip streams: no 5xx, no memory left behind",
                "test_bombs::a_thousand_gzip_streams",
            ),
            ("JSON bombs: no 5xx, no memory left behind", "test_bombs::json_bombs"),
            ("60 large bodies at once share one budget", "test_bombs::sixty_large_bodies"),
            ("JSON in UTF-16 or UTF-32: 400", "test_decode_requests::json_in_another_encoding"),
            ("1,000 clients that send slowly: others lose nothing", "faults::a_thousand_clients_that_send_slowly"),
            ("Bodies without end, giant headers, through HAProxy: 413, 400", "faults::bodies_without_end_and_giant_headers"),
            (
                "A flood without a key on an unknown path: memory of a replica grows by less than 100 MB and comes back",
                "faults::a_flood_without_a_key_leaves_nothing_behind[an unknown path",
            ),
            ("The same on /health", "faults::a_flood_without_a_key_leaves_nothing_behind[GET /health"),
            ("The same on Serve's control paths", "faults::a_flood_without_a_key_leaves_nothing_behind[Serve"),
            (
                "The same on /predict, with Origin and with gzip",
                "faults::a_flood_without_a_key_leaves_nothing_behind[/predict",
            ),
            (
                "400 slow connections without a key on any path: /health and predictions from browsers are answered",
                "faults::four_hundred_slow_connections_without_a_key",
            ),
            ("1,000 clients that do not read: the same", "faults::a_thousand_clients_that_do_not_read"),
            ("A trailer is no header", "test_hostile_headers::a_trailer_is_no_header"),
            (
                "The limit of a client is not evaded by trailers",
                "test_hostile_headers::the_limit_of_a_client_is_not_evaded_by_trailers",
            ),
            (
                "Bytes that are no UTF-8 in a header: a problem, no 5xx",
                "test_hostile_headers::bytes_that_are_no_utf_8_in_a_header",
            ),
            ("Two keys in one request: 400", "test_hostile_headers::a_key_that_comes_twice_is_refused"),
            ("Serve's control paths: no body reaches Serve", "test_hostile_headers::serves_control_paths_are_reached"),
        ),
    ),
    (
        "Models",
        (
            (
                "1,000 hostile models: all refused for the right reason, nothing executed",
                "test_hostile_models::more_than_a_thousand",
            ),
            (
                "10,000 mutations of ONNX models: what is accepted, the package `onnx` reads the same",
                "test_hostile_onnx::both_readers_see_the_same",
            ),
            (
                "ONNX models that hide loops, files or foreign operators: refused before they are parsed",
                "test_hostile_onnx::a_model_that_hides_something",
            ),
            ("The hidden things would run", "test_hostile_onnx::what_a_model_hides"),
            ("A model that swells: refused, the replica does not grow", "test_hostile_onnx::a_model_that_swells"),
            (
                "A model that never ends: refused in time, also for a replica that starts",
                "test_hostile_onnx::a_model_that_never_ends_is_refused",
            ),
            (
                "A roll-back is followed while a model that never ends is tried",
                "test_hostile_onnx::a_roll_back_is_followed",
            ),
            ("A pickle that dies, hangs or swells takes only its trial with it", "test_trial::a_pickle_takes_only_its_trial"),
            ("The list of operators is what conversions give", "test_onnx_operators::the_allowed_operators"),
            ("The traps in them would spring", "test_hostile_models::the_traps_would_spring"),
            (
                "With IRIS_ALLOW_JOBLIB=false nothing is unpickled",
                "test_hostile_models::a_replica_that_may_not_unpickle",
            ),
            ("With IRIS_VERIFY_KEY nothing unsigned is served", "test_hostile_models::only_bundles_with_the_trainers_seal"),
            (
                "Pipes, sockets, links, folders and sparse files in the store: no reader hangs or fills its memory",
                "test_hostile_store::no_kind_of_file",
            ),
            ("600 MB of unused files in a bundle: 0 MB kept", "test_hostile_store::junk_in_a_bundle"),
            ("An unsigned bundle: nothing large is read", "test_hostile_store::an_unsigned_bundle_is_refused_before"),
            ("A model larger than a quarter of the memory: not read", "test_hostile_store::a_model_larger_than_a_share"),
            ("Links in the store lead no writer out of it", "test_hostile_store::links_in_the_store"),
            ("No text of the store forges a line of the log", "test_hostile_store::forges"),
            ("A manifest that says too much is refused", "test_hostile_store::a_manifest_that_says_too_much"),
            ("skops bombs: refused with little memory", "test_hostile_store::in_the_format_of_skops_cannot_fill"),
            ("A download from MLflow is bounded in bytes and time", "test_hostile_store::a_download_is_bounded"),
            (
                "The trainer unpickles no served model that the policy refuses",
                "test_comparison::a_served_model_that_the_policy_refuses",
            ),
            (
                "A trainer with a signing key trusts its own bundles alone",
                "test_comparison::a_trainer_with_a_signing_key",
            ),
            (
                "`promote` and `rollback` move to nothing that is not signed",
                "test_policy::a_version_without_the_trusted_seal",
            ),
            (
                "The store moves no alias of another registered model",
                "test_alias::a_manifest_that_names_another_registered_model",
            ),
            ("The store moves no alias to another version", "test_alias::a_manifest_that_names_a_version_of_another_digest"),
        ),
    ),
    (
        "Tables",
        (
            ("Names of any characters end no training and stay what they are", "test_names::names_of_any_characters"),
            ("Messages about a table hold no control character", "test_printable::an_error_about_a_column"),
            ("CSV scores hold no formula", "test_results::a_text_that_begins_a_formula"),
            ("The printed example runs nothing in a shell", "test_example::a_short_row_is_part_of_the_command_and_quoted"),
            ("A table of many columns is explained within its time", "test_importance::the_time_is_kept"),
        ),
    ),
    (
        "Exposure",
        (
            (
                "The OpenAPI document follows from the contract of the model alone",
                "test_pages::the_schema_follows_from_the_contract_alone",
            ),
            ("It has no value of the training table", "test_pages::the_openapi_document_has_no_value"),
            ("The open metrics tell nothing of the training rows", "test_pages::the_open_metrics_have_no_series"),
            ("One setting closes documentation and metrics", "test_pages::one_setting_puts_the_pages_behind_the_key"),
            ("On one machine nothing listens on other interfaces", "test_exposure::nothing_listens_on_an_address"),
            (
                "No process of Ray, Serve or HAProxy has a secret in its environment",
                "test_exposure::only_the_process_that_the_user_started",
            ),
        ),
    ),
    (
        "Supply chain",
        (
            ("No secret and nothing compiled in the repository", "test_supply_chain::no_secret_is_in_the_tree"),
            ("Every package pinned with hashes", "test_supply_chain::every_package_is_pinned"),
            ("Workflows have the rights they name and no other", "test_supply_chain::a_workflow_has_only_the_rights"),
            ("Released images: base by digest", "test_supply_chain::a_released_image_is_built_from_the_digest"),
            ("Released images: signature, SBOM, provenance", "test_supply_chain::a_released_image_is_signed"),
        ),
    ),
    (
        "Manifests",
        (
            ("A Secret, such as the API key, reaches only the containers that need it", "test_rendered::every_secret_reaches_only"),
            ("Nothing is unpickled, no other origin is let in", "test_rendered::nothing_is_unpickled_and_no_other_origin"),
            ("An MLflow that decides what is served requires a login", "test_rendered::an_mlflow_that_decides"),
            ("Redis requires a password", "test_rendered::a_redis_requires_a_password"),
            ("Every scratch volume has a limit", "test_rendered::every_scratch_volume_has_a_limit"),
            ("An Ingress publishes a list of paths", "test_rendered::an_ingress_publishes_a_list"),
            ("On a cluster: signed models are served, others refused", "e2e::signed_models_are_served_and_others_refused"),
            ("On a cluster: replicas cannot change MLflow", "e2e::mlflow_asks_for_a_password"),
        ),
    ),
)

CLUSTER: tuple[str, Rows] = (
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
        (
            "HAProxy of a worker killed or frozen: another one within 5 s, 0 failed after one retry",
            "e2e::a_haproxy_that_is_killed_or_frozen",
        ),
        ("The head killed: 0 failed after one retry, workers stay", "e2e::the_loss_of_the_head_costs_no_request"),
        ("The head killed, then a worker deleted: 0 failed after one retry", "e2e::a_new_head_replaces_a_lost_replica"),
        ("All pods killed at once: heals by itself", "e2e::the_loss_of_all_pods_heals_by_itself"),
        ("The state of the head destroyed: heals by itself", "e2e::a_head_whose_state_is_destroyed"),
        ("The head killed, with Redis: 0 failed, workers stay", "e2e::the_loss_of_the_head_is_not_felt_with_redis"),
        ("Another model live, and back: 0 failed, no pod replaced", "e2e::a_new_model_goes_live_and_back"),
        ("2 to 4 to 2 replicas: 0 failed", "e2e::more_and_fewer_replicas"),
        ("An upgrade to a second Ray cluster: 0 failed", "e2e::a_changed_setting_rolls_out"),
        ("Prometheus and Alertmanager gone: 0 failed", "e2e::removing_the_monitoring"),
        ("Closed ports: each pod reaches the ports that it needs, and no other", "e2e::each_pod_reaches_what_it_needs"),
        ("No job without the token, from any pod", "e2e::nobody_submits_a_job"),
        ("Service accounts may do what they need", "e2e::no_account_may_do_more"),
    ),
)

PAGES: dict[str, Groups] = {"docs/explanation/reliability.md": (*PROMISES, CLUSTER), "docs/explanation/security.md": SECURITY}


def note(text: str) -> None:
    """Record a figure of the running test."""
    print(text)
    keep(os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0], figure=text)


def keep(test: str, **what: str) -> None:
    """Append a line about a test: its `figure`, or its `outcome`."""
    FILE.parent.mkdir(exist_ok=True)
    line = {"test": test, "at": datetime.now(UTC).isoformat(timespec="seconds"), **what}
    with FILE.open("a") as file:
        file.write(json.dumps(line) + "\n")


def is_promised(test: str) -> bool:
    """Whether a row of the tables names this test."""
    return any(is_of(test, selector) for groups in PAGES.values() for _, rows in groups for _, selector in rows)


def is_of(test: str, selector: str) -> bool:
    """Whether `tests/faults/test_x.py::test_a[b]` matches the selector of a row: a part of its path, `::`, a part of its name."""
    where, _, name = selector.partition("::")
    file, _, full = test.partition("::")
    return where in file and name in full


def figure_of(selector: str, lines: list[dict[str, str]]) -> str | None:
    """The figure of the last run of the tests of a row; None when they have not run."""
    outcomes: dict[str, str] = {}
    figures: dict[str, list[str]] = {}
    running: dict[str, list[str]] = {}
    at = ""
    for line in lines:
        test = line["test"]
        if not is_of(test, selector):
            continue
        at = line["at"][:10]
        if "figure" in line:
            running.setdefault(test, []).append(line["figure"])
        else:
            outcomes[test], figures[test] = line["outcome"], running.pop(test, [])
    if not outcomes:
        return None
    failed = [test for test, outcome in outcomes.items() if outcome != "passed"]
    texts = [figure for test in figures if not failed or test in failed for figure in figures[test]]
    passed = f"{len(outcomes)} of {len(outcomes)} tests passed" if len(outcomes) > 1 else "passed"
    text = "; ".join(texts) if len(texts) <= MOST else passed
    if failed:
        text = f"FAILED: {text if texts else failed[0].rpartition('::')[2]}"
    return f"{text or passed} ({at})"


def table(groups: Groups, lines: list[dict[str, str]], before: dict[str, str], *, heading_mark: str = "##") -> str:
    """The tables as Markdown. A row without a new figure keeps the one in `before`, by its promise."""
    parts = []
    for heading, rows in groups:
        parts += [f"{heading_mark} {heading}\n", "| promise | test | last figure |\n| --- | --- | --- |"]
        for promise, selector in rows:
            parts.append(f"| {promise} | `{selector}` | {figure_of(selector, lines) or before.get(promise, NONE)} |")
        parts.append("")
    return "\n".join(parts)


def figures_in(text: str) -> dict[str, str]:
    """The figures of the tables in a page, by promise."""
    cells = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip(): row[2].strip() for row in cells if len(row) == 3}


def main() -> None:
    lines = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    for page, groups in PAGES.items():
        path = ROOT / page
        head, _, rest = path.read_text().partition("<!-- figures -->\n")
        tail = rest.partition("<!-- end of figures -->")[2]
        mark = "###" if "\n## " in head else "##"  # below a section of the page, or a section of its own
        body = table(groups, lines, figures_in(rest), heading_mark=mark)
        path.write_text(f"{head}<!-- figures -->\n{body}<!-- end of figures -->{tail}")


if __name__ == "__main__":
    main()
