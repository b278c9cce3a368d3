"""The promises of the pages on reliability and security: each with the test that tries to break it, and the number shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple


class Number(NamedTuple):
    """How a cell is made from what the tests of a promise recorded."""

    pattern: str
    """Finds the number: the group that matched."""
    words: str
    """The cell, with `{}` for the number."""
    of: Callable[[Iterable[float]], float] = max
    """Which number is shown when there are several: the worst, or their sum."""


class Promise(NamedTuple):
    text: str
    test: str
    """A part of the test's file, `::`, a part of its name."""
    number: Number | None = None
    """None: the tests record no number, and the page says how many passed."""


Groups = tuple[tuple[str, tuple[Promise, ...]], ...]

FAILED = Number(r"failed without retry (\d+)|(\d+) failed without retry", "{} failed")
AFTER_RETRY = Number(r"after one retry (\d+)", "{} failed after one retry")
SILENT = Number(r"longest time without an answer ([\d.]+) s", "{} s without an answer")
MEMORY = Number(r"(?:memory|grew by) ([+-]?[\d.]+) MB", "{} MB of memory")
PEAK = Number(r"peak of the memory \+(\d+) MB", "{} MB of memory")

RELIABILITY: Groups = (
    (
        "Serving",
        (
            Promise(
                "A replica is killed: no request is lost after one retry",
                "faults::a_killed_replica_costs_no_request_after_one_retry",
                AFTER_RETRY,
            ),
            Promise(
                "A replica freezes: Serve replaces it, and at most 1 % of the requests are lost after one retry",
                "faults::a_frozen_replica_is_replaced_and_costs_few_requests_after_one_retry",
                AFTER_RETRY,
            ),
            Promise(
                "HAProxy is killed or freezes: another one answers within 5 s",
                "faults::a_haproxy_that_is_killed_or_frozen_is_replaced_within_five_seconds",
                SILENT,
            ),
            Promise(
                "HAProxy and a replica are killed together: the new HAProxy knows the new replica",
                "faults::a_haproxy_that_is_killed_together_with_a_replica",
                AFTER_RETRY,
            ),
            Promise(
                "One of two machines dies: its replica starts on the other, 0 lost after one retry",
                "faults::a_machine_that_dies_is_replaced_on_the_other",
                AFTER_RETRY,
            ),
            Promise("20 models are replaced under load: 0 failed, 0 mislabelled", "integration::models_are_replaced_under_load"),
            Promise(
                "The clock steps by an hour: this neither refuses nor admits a request",
                "http/test_rate_window::a_step_of_the_clock",
            ),
        ),
    ),
    (
        "Load",
        (
            Promise(
                "Load of 2 and 5 times the capacity: at least 80 % of the capacity is answered right",
                "faults::requests_beyond_the_capacity_are_refused_at_once",
                Number(r"(\d+)% of that answered right", "{} % answered right", min),
            ),
            Promise(
                "30,000 requests: none is answered wrong, and nothing is left behind",
                "faults::thirty_thousand_requests_leave_nothing_behind",
                Number(r"(\d+) not answered right", "{} not answered right"),
            ),
            Promise(
                "1,000,000 requests: a replica's memory grows by less than 1 MB per 100,000",
                "soak::a_million_requests_leave_nothing_behind",
                Number(r"memory of a replica ([+-][\d.]+) MB", "{} MB per 100,000 requests"),
            ),
        ),
    ),
    (
        "The store and MLflow",
        (
            Promise(
                "The pointer is corrupt or missing while MLflow hangs: no answer changes",
                "faults::a_corrupt_pointer_changes_no_answer_and_a_good_one_is_followed",
                FAILED,
            ),
            Promise(
                "A publisher is killed at each of its steps: readers find the old or the new model",
                "test_store_crash::killed_at_any_call",
                Number(r"killed at (\d+) calls", "killed at {} calls", sum),
            ),
            Promise(
                "A publisher is killed from outside at any moment: the store is whole", "test_store_crash::killed_from_outside"
            ),
            Promise(
                "The disk fails at each step of a publisher: it reports the error, and nothing changes",
                "test_store_crash::disk_fails",
                Number(r"disk failed at (\d+) calls", "failed at {} calls", sum),
            ),
            Promise("The volume is full: the publisher fails, and the pointer stays", "test_store_volume::on_a_full_disk"),
            Promise("The volume fills up while a replica serves: 0 failed", "faults::a_full_volume_costs_no_answer", FAILED),
            Promise(
                "The store is empty and MLflow is unwell: replicas stay live, answer 503, and find the model later",
                "faults::with_an_empty_store_and_mlflow_unwell",
                Number(r"([\d.]+) s after the model came back", "served {} s after the model came back"),
            ),
            Promise(
                "The registry names an unknown version: replicas refuse it and keep the served one",
                "test_mlflow_source::an_unknown_version",
            ),
        ),
    ),
    (
        "On a cluster",
        (
            Promise("A worker pod is deleted: 0 failed", "e2e::a_worker_that_is_deleted", FAILED),
            Promise(
                "A worker pod is killed: 0 failed after one retry, at most 0.1 % without",
                "e2e::a_worker_that_is_killed",
                AFTER_RETRY,
            ),
            Promise(
                "One worker is evicted: 0 failed, and Kubernetes refuses the second eviction",
                "e2e::of_two_evictions_the_second_is_refused",
                FAILED,
            ),
            Promise("The operator is killed: 0 failed, and it resumes its work", "e2e::a_killed_operator", FAILED),
            Promise(
                "The API server is away for two minutes: 0 failed meanwhile, at most a minute of silence after it",
                "e2e::is_gone_for_a_while[apiserver",
                Number(r"(\d+) of \d+ failed meanwhile", "{} failed meanwhile"),
            ),
            Promise("The kubelet restarts: 0 failed, no pod is replaced", "e2e::is_gone_for_a_while[kubelet", FAILED),
            Promise("containerd restarts: 0 failed, no pod is replaced", "e2e::is_gone_for_a_while[containerd", FAILED),
            Promise(
                "A replica runs out of memory: 0 failed after one retry", "e2e::a_replica_that_runs_out_of_memory", AFTER_RETRY
            ),
            Promise("DNS is away for a minute: 0 failed", "e2e::names_are_not_resolved_for_a_minute", FAILED),
            Promise(
                "A worker's HAProxy is killed or freezes: another one within 5 s, 0 failed after one retry",
                "e2e::a_haproxy_that_is_killed_or_frozen",
                AFTER_RETRY,
            ),
            Promise(
                "The head is killed: 0 failed after one retry, the workers stay",
                "e2e::the_loss_of_the_head_costs_no_request",
                AFTER_RETRY,
            ),
            Promise(
                "The head is killed, then a worker is deleted: 0 failed after one retry",
                "e2e::a_new_head_replaces_a_lost_replica",
                AFTER_RETRY,
            ),
            Promise(
                "All pods are killed at once: the application recovers by itself",
                "e2e::the_loss_of_all_pods_heals_by_itself",
                Number(r"first answer after (\d+) s", "first answer after {} s"),
            ),
            Promise(
                "The state of the head is destroyed: the application recovers by itself",
                "e2e::a_head_whose_state_is_destroyed",
                Number(r"whole again after (\d+) s", "whole again after {} s"),
            ),
            Promise(
                "The head is killed, with Redis: 0 failed, the workers stay",
                "e2e::the_loss_of_the_head_is_not_felt_with_redis",
                FAILED,
            ),
            Promise(
                "Another model goes live, and back: 0 failed, no pod is replaced", "e2e::a_new_model_goes_live_and_back", FAILED
            ),
            Promise("The replicas go from 2 to 4 and back to 2: 0 failed", "e2e::more_and_fewer_replicas", FAILED),
            Promise("An upgrade starts a second Ray cluster: 0 failed", "e2e::a_changed_setting_rolls_out", FAILED),
            Promise("Prometheus and Alertmanager are removed: 0 failed", "e2e::removing_the_monitoring", FAILED),
            Promise(
                "Each pod reaches the ports that it needs, and no other",
                "e2e::each_pod_reaches_what_it_needs",
                Number(r"(\d+) pairs", "{} pairs of pod and port tried"),
            ),
            Promise(
                "No pod can submit a job without the token",
                "e2e::nobody_submits_a_job",
                Number(r"from each of (\d+) pods", "{} pods tried"),
            ),
            Promise(
                "Service accounts have the rights that they need, and no other",
                "e2e::no_account_may_do_more",
                Number(r"(\d+) accounts", "{} accounts compared"),
            ),
        ),
    ),
)

SECURITY: Groups = (
    (
        "Keys and limits",
        (
            Promise(
                "Within 10 s, replicas accept a new key and refuse a revoked one",
                "faults::keys_come_and_go_within_ten_seconds",
                Number(r"(?:known|dead) after ([\d.]+) s", "after {} s"),
            ),
            Promise(
                "A key is accepted between its dates, also when the clock steps by an hour",
                "test_auth::a_step_of_the_clock",
            ),
            Promise(
                "Two replicas keep the limit of a key within 5 %",
                "faults::the_limit_of_a_key_holds_over_both_replicas",
                Number(r"([+-][\d.]+) %", "{} %"),
            ),
            Promise(
                "The time of a refusal reveals nothing about a key",
                "test_key_timing::the_time_of_a_refusal_does_not_tell",
                Number(r"(\d+) rounds", "{} rounds, no difference"),
            ),
            Promise("The measurement of that time would detect a leak", "test_key_timing::the_measure_of_time_sees_a_leak"),
            Promise(
                "All refusals without a correct key are alike", "test_hostile_clients::refusals_without_a_right_key_are_all_alike"
            ),
            Promise(
                "Replicas trust a forwarded address only from configured proxies",
                "test_rate_limit::a_forwarded_address_is_believed_only",
            ),
            Promise("In production, nothing starts without a good key", "test_settings::a_wrong_setting_is_one_sentence"),
            Promise("A key that can be guessed is refused", "test_key_strength::a_key_that_can_be_guessed"),
            Promise(
                "A key without the scope manage cannot change the served version",
                "http/test_console_actions::a_key_without_the_scope_is_refused",
            ),
            Promise(
                "A page of another site cannot change the served version",
                "http/test_console_actions::a_page_of_another_site_is_refused",
            ),
            Promise("Without its setting, the console cannot change anything", "http/test_console_actions::without_the_setting"),
        ),
    ),
    (
        "Requests",
        (
            Promise(
                "10,000 bad requests: no 5xx, nothing undocumented, no input repeated",
                "test_hostile_clients::ten_thousand_bad_requests",
                Number(r"(\d+) requests:", "{} requests tried"),
            ),
            Promise(
                "Fuzzing of the whole OpenAPI document, with a key and without: answers are as documented",
                "test_schema::every_answer_is_as_documented",
            ),
            Promise(
                "Bodies without end get 413 at once, bounded in bytes, time and memory",
                "test_bodies::a_body_without_end",
            ),
            Promise("A body that trickles gets 408", "test_bodies::a_body_that_trickles"),
            Promise(
                "A client without a key cannot keep its connection with such bodies",
                "test_bodies::who_shows_no_key_cannot_keep_the_connection",
            ),
            Promise(
                "No body of 16 MB, right or wrong, plain or gzip, delays another client by 50 ms",
                "test_standstill::no_body_holds_up_another_client",
                Number(r"delay (\d+) ms", "{} ms of delay"),
            ),
            Promise(
                "No tensors of the Open Inference Protocol (JSON, bytes, deflate) do so",
                "test_standstill::no_tensors_hold_up_another_client",
                Number(r"delay (\d+) ms", "{} ms of delay"),
            ),
            Promise(
                "Thousands of hostile tensors: one error each, no value repeated, no memory left behind",
                "test_hostile_tensors::thousands_of_hostile_tensors",
                MEMORY,
            ),
            Promise(
                "1,000 generated gzip streams: no 5xx, no memory left behind",
                "test_bombs::a_thousand_gzip_streams",
                MEMORY,
            ),
            Promise("JSON bombs: no 5xx, no memory left behind", "test_bombs::json_bombs", MEMORY),
            Promise("60 large bodies at once share one budget", "test_bombs::sixty_large_bodies", MEMORY),
            Promise("JSON in UTF-16 or UTF-32 gets 400", "test_decode_requests::json_in_another_encoding"),
            Promise(
                "1,000 clients send slowly: other clients lose nothing",
                "faults::a_thousand_clients_that_send_slowly",
                FAILED,
            ),
            Promise(
                "Bodies without end and giant headers, through HAProxy, get 413 and 400",
                "faults::bodies_without_end_and_giant_headers",
                MEMORY,
            ),
            Promise(
                "A flood without a key on an unknown path: a replica grows by less than 100 MB, and shrinks again",
                "faults::a_flood_without_a_key_leaves_nothing_behind[an unknown path",
                MEMORY,
            ),
            Promise("The same flood on /health", "faults::a_flood_without_a_key_leaves_nothing_behind[GET /health", MEMORY),
            Promise("The same flood on Serve's control paths", "faults::a_flood_without_a_key_leaves_nothing_behind[Serve", MEMORY),
            Promise(
                "The same flood on /predict, with Origin and with gzip",
                "faults::a_flood_without_a_key_leaves_nothing_behind[/predict",
                MEMORY,
            ),
            Promise(
                "400 slow connections without a key: /health and predictions from browsers are answered",
                "faults::four_hundred_slow_connections_without_a_key",
                Number(r"(\d+) other requests", "{} other requests answered", sum),
            ),
            Promise(
                "1,000 clients do not read: other requests are answered",
                "faults::a_thousand_clients_that_do_not_read",
                Number(r"(\d+) other requests", "{} other requests answered", sum),
            ),
            Promise("A trailer does not count as a header", "test_hostile_headers::a_trailer_is_no_header"),
            Promise(
                "A client cannot evade its limit of 20 requests with trailers",
                "test_hostile_headers::the_limit_of_a_client_is_not_evaded_by_trailers",
                Number(r"(\d+) of \d+ requests", "{} requests admitted"),
            ),
            Promise(
                "Header bytes that are not UTF-8 get a problem and no 5xx",
                "test_hostile_headers::bytes_that_are_no_utf_8_in_a_header",
                Number(r"(\d+) requests", "{} requests tried"),
            ),
            Promise("Two keys in one request get 400", "test_hostile_headers::a_key_that_comes_twice_is_refused"),
            Promise("On Serve's control paths, no body reaches Serve", "test_hostile_headers::serves_control_paths_are_reached"),
        ),
    ),
    (
        "Models",
        (
            Promise(
                "1,000 hostile models: all refused for the right reason, nothing is executed",
                "test_hostile_models::more_than_a_thousand",
                Number(r"hostile bundles: (\d+)", "{} bundles refused"),
            ),
            Promise("The traps in these models would be executed", "test_hostile_models::the_traps_would_spring"),
            Promise(
                "10,000 mutations of ONNX models: the package `onnx` reads accepted models the same way",
                "test_hostile_onnx::both_readers_see_the_same",
                Number(r"(\d+) read otherwise", "{} read otherwise"),
            ),
            Promise(
                "ONNX models that hide loops, files or foreign operators are refused before they are parsed",
                "test_hostile_onnx::a_model_that_hides_something",
            ),
            Promise("ONNX Runtime would run what these models hide", "test_hostile_onnx::what_a_model_hides"),
            Promise(
                "A model that swells is refused, and the replica does not grow",
                "test_hostile_onnx::a_model_that_swells",
                Number(r"\+(\d+) MB", "{} MB of memory"),
            ),
            Promise(
                "A model that never ends is refused in time, also by a replica that starts",
                "test_hostile_onnx::a_model_that_never_ends_is_refused",
                Number(r"free after ([\d.]+) s", "after {} s"),
            ),
            Promise(
                "Replicas follow a roll-back while they try a model that never ends",
                "test_hostile_onnx::a_roll_back_is_followed",
                Number(r"followed after ([\d.]+) s", "after {} s"),
            ),
            Promise(
                "A pickle that dies, hangs or swells ends only its trial",
                "test_trial::a_pickle_takes_only_its_trial",
                Number(r"refused after ([\d.]+) s", "after {} s"),
            ),
            Promise(
                "The list of operators holds what conversions produce, and no more",
                "test_onnx_operators::the_allowed_operators",
                Number(r"(\d+) operators", "{} operators"),
            ),
            Promise(
                "With IRIS_ALLOW_JOBLIB=false, replicas unpickle nothing",
                "test_hostile_models::a_replica_that_may_not_unpickle",
            ),
            Promise(
                "With IRIS_VERIFY_KEY, replicas serve nothing unsigned", "test_hostile_models::only_bundles_with_the_trainers_seal"
            ),
            Promise(
                "No pipe, socket, link, folder or sparse file in the store stops a reader or fills its memory",
                "test_hostile_store::no_kind_of_file",
                Number(r"(\d+) files", "{} files tried"),
            ),
            Promise(
                "A replica keeps none of 600 MB of unused files in a bundle",
                "test_hostile_store::junk_in_a_bundle",
                Number(r"kept \+(\d+) MB", "{} MB kept"),
            ),
            Promise("Of an unsigned bundle, nothing large is read", "test_hostile_store::an_unsigned_bundle_is_refused_before"),
            Promise(
                "A model larger than a quarter of the memory is not read",
                "test_hostile_store::a_model_larger_than_a_share",
            ),
            Promise("Links in the store lead no writer out of it", "test_hostile_store::links_in_the_store"),
            Promise("No text in the store forges a line of the log", "test_hostile_store::forges"),
            Promise("A manifest that exceeds its bounds is refused", "test_hostile_store::a_manifest_that_says_too_much"),
            Promise("skops bombs are refused with little memory", "test_hostile_store::in_the_format_of_skops_cannot_fill", PEAK),
            Promise("A download from MLflow is bounded in bytes and time", "test_hostile_store::a_download_is_bounded"),
            Promise(
                "The trainer unpickles no served model that the policy refuses",
                "test_comparison::a_served_model_that_the_policy_refuses",
            ),
            Promise(
                "A trainer with a signing key trusts only its own bundles",
                "test_comparison::a_trainer_with_a_signing_key",
            ),
            Promise(
                "`promote` and `rollback` move the pointer to no unsigned bundle",
                "test_policy::a_version_without_the_trusted_seal",
            ),
            Promise(
                "The store moves no alias of another registered model",
                "test_alias::a_manifest_that_names_another_registered_model",
            ),
            Promise("The store moves no alias to another version", "test_alias::a_manifest_that_names_a_version_of_another_digest"),
        ),
    ),
    (
        "Tables",
        (
            Promise(
                "Names may hold any character: training continues, and the names stay as they are",
                "test_names::names_of_any_characters",
            ),
            Promise("Messages about a table hold no control character", "test_printable::an_error_about_a_column"),
            Promise("CSV scores hold no formula", "test_results::a_text_that_begins_a_formula"),
            Promise("The printed example runs nothing in a shell", "test_example::a_short_row_is_part_of_the_command_and_quoted"),
            Promise("The explanation of a table with many columns keeps its time", "test_importance::the_time_is_kept"),
        ),
    ),
    (
        "Exposure",
        (
            Promise(
                "The OpenAPI document follows from the contract of the model alone",
                "test_pages::the_schema_follows_from_the_contract_alone",
            ),
            Promise("The OpenAPI document holds no value of the training table", "test_pages::the_openapi_document_has_no_value"),
            Promise("The open metrics tell nothing about the training rows", "test_pages::the_open_metrics_have_no_series"),
            Promise("One setting closes documentation and metrics", "test_pages::one_setting_puts_the_pages_behind_the_key"),
            Promise(
                "On one machine, nothing listens on other interfaces",
                "test_exposure::nothing_listens_on_an_address",
                Number(r"(\d+) of them not on loopback", "{} sockets not on loopback"),
            ),
            Promise(
                "No process of Ray, Serve or HAProxy has a secret in its environment",
                "test_exposure::only_the_process_that_the_user_started",
                Number(r"(\d+) of them with a secret", "{} processes with a secret"),
            ),
        ),
    ),
    (
        "Supply chain",
        (
            Promise("The repository holds no secret and nothing compiled", "test_supply_chain::is_in_the_tree"),
            Promise("Every package is pinned with hashes", "test_supply_chain::every_package_is_pinned"),
            Promise("Workflows have only the rights that they name", "test_supply_chain::a_workflow_has_only_the_rights"),
            Promise(
                "Released images are built from the digest of their base",
                "test_supply_chain::a_released_image_is_built_from_the_digest",
            ),
            Promise("Released images have a signature, an SBOM and a provenance", "test_supply_chain::a_released_image_is_signed"),
        ),
    ),
    (
        "Manifests",
        (
            Promise(
                "A Secret, such as the API key, reaches only the containers that need it",
                "test_rendered::every_secret_reaches_only",
            ),
            Promise(
                "The manifests allow no unpickling and no other origin", "test_rendered::nothing_is_unpickled_and_no_other_origin"
            ),
            Promise("An MLflow that decides what is served requires a login", "test_rendered::an_mlflow_that_decides"),
            Promise("Redis requires a password", "test_rendered::a_redis_requires_a_password"),
            Promise("Every scratch volume has a limit", "test_rendered::every_scratch_volume_has_a_limit"),
            Promise("An Ingress publishes a list of paths", "test_rendered::an_ingress_publishes_a_list"),
            Promise(
                "On a cluster, replicas serve signed models and refuse others",
                "e2e::signed_models_are_served_and_others_refused",
                Number(r"(\d+) without its signature refused", "{} refused"),
            ),
            Promise(
                "On a cluster, replicas cannot change MLflow",
                "e2e::mlflow_asks_for_a_password",
                Number(r"403 for (\d+) of", "{} changes refused"),
            ),
        ),
    ),
)

PAGES: dict[str, Groups] = {"docs/explanation/reliability.md": RELIABILITY, "docs/explanation/security.md": SECURITY}
