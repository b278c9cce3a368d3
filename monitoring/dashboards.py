"""Writes the dashboards: `python -m monitoring.dashboards`. A test compares the files with what this makes."""

from __future__ import annotations

import json
from pathlib import Path

from monitoring.panels import Json, bars, dashboard, graph, query, stat, table, variable

FOLDER = Path(__file__).parent / "base" / "grafana" / "dashboards"
NS = 'namespace=~"$namespace"'
RATE = "[$__rate_interval]"
PREDICT = f'route="/predict", status_class="2xx", {NS}'

NAMESPACE = variable("namespace", "Namespace", "label_values(model_loaded, namespace)")
FEATURE = variable("feature", "Feature", 'label_values(model_input_bin_total{namespace=~"$namespace"}, feature)', every=False)
POD = variable("pod", "Pod", 'label_values(up{job=~"ray-.+", namespace=~"$namespace"}, pod)')


def quantile(share: float, metric: str, labels: str, legend: str, *, by: str = "") -> Json:
    group = f"le, {by}" if by else "le"
    return query(f"histogram_quantile({share}, sum by ({group}) (rate({metric}_bucket{{{labels}}}{RATE})))", legend)


def overview() -> Json:
    return dashboard(
        "iris-overview",
        "iris-api / Overview",
        "Is the service well? Traffic, errors, time to answer, room left; which model answers.",
        [NAMESPACE],
        [
            (
                "Now",
                [
                    stat(
                        "Replicas with a model",
                        "Replicas that can answer.",
                        query(f"sum(model_loaded{{{NS}}})"),
                        thresholds=((1, "green"),),
                        base="red",
                    ),
                    stat(
                        "Version in use",
                        "More than one name: replicas disagree, for seconds during a swap.",
                        query(f"count by (version) (model_info{{{NS}}} == 1)", "{{version}}"),
                        named=True,
                    ),
                    stat(
                        "Age of the model",
                        "Since it was trained.",
                        query(f"max(iris:model_age_seconds:max{{{NS}}})"),
                        unit="s",
                        thresholds=((30 * 86400, "orange"), (45 * 86400, "red")),
                    ),
                    stat(
                        "Availability, 3 days",
                        "Requests without an error of ours; the objective is 99.9 %.",
                        query(f"1 - max(iris:errors:ratio3d{{{NS}}})"),
                        unit="percentunit",
                        decimals=3,
                        base="red",
                        thresholds=((0.999, "green"),),
                    ),
                    stat(
                        "Within 100 ms, 3 days",
                        "Predictions answered by a replica within 100 ms; the objective is 99 %.",
                        query(f"1 - max(iris:slow:ratio3d{{{NS}}})"),
                        unit="percentunit",
                        decimals=2,
                        base="red",
                        thresholds=((0.99, "green"),),
                    ),
                    stat(
                        "Predictions, 24 hours",
                        "Rows predicted.",
                        query(f"sum(increase(model_predictions_total{{{NS}}}[1d]))"),
                        decimals=0,
                    ),
                ],
            ),
            (
                "Golden signals",
                [
                    graph(
                        "Traffic",
                        "Requests per second as HAProxy passed them on, by kind of answer.",
                        query(
                            f'sum by (code) (rate(haproxy_backend_http_responses_total{{proxy=~"http-.+", {NS}}}{RATE})) > 0',
                            "{{code}}",
                        ),
                        unit="reqps",
                        stacked=True,
                    ),
                    graph(
                        "Errors",
                        "Requests per second that ended in an error, by its code; 4xx are the client's.",
                        query(f"sum by (error_type) (rate(api_errors_total{{{NS}}}{RATE}))", "{{error_type}}"),
                        unit="reqps",
                    ),
                    graph(
                        "Time to answer a prediction",
                        "Measured in the replica. The objective is 100 ms for 99 %.",
                        quantile(0.5, "http_request_duration_seconds", PREDICT, "half within"),
                        quantile(0.95, "http_request_duration_seconds", PREDICT, "95 % within"),
                        quantile(0.99, "http_request_duration_seconds", PREDICT, "99 % within"),
                        unit="s",
                        thresholds=((0.1, "red"),),
                    ),
                    graph(
                        "CPU of the replicas",
                        "Percent of a core. One event loop answers, so 100 is the end of a replica.",
                        query(f'ray_component_cpu_percentage{{Component=~"ray::ServeReplica.*", {NS}}}', "{{pod}}"),
                        unit="percent",
                        thresholds=((85, "red"),),
                    ),
                    graph(
                        "Requests in flight",
                        "Being answered by replicas, and waiting in HAProxy.",
                        query(f"sum(http_requests_in_flight{{{NS}}})", "in replicas"),
                        query(f'sum(haproxy_backend_current_queue{{proxy=~"http-.+", {NS}}})', "waiting"),
                    ),
                    graph(
                        "Error budget burnt",
                        "Share of failed requests divided by the 0.1 % that are allowed: 1 is just sustainable, 14.4 pages.",
                        query(f"max(iris:errors:ratio5m{{{NS}}}) / 0.001", "5 minutes"),
                        query(f"max(iris:errors:ratio1h{{{NS}}}) / 0.001", "1 hour"),
                        query(f"max(iris:errors:ratio6h{{{NS}}}) / 0.001", "6 hours"),
                        thresholds=((1, "orange"), (14.4, "red")),
                    ),
                ],
            ),
            (
                "Predictions",
                [
                    graph(
                        "Predictions by class",
                        "Rows per second.",
                        query(f"sum by (predicted_class) (rate(model_predictions_total{{{NS}}}{RATE}))", "{{predicted_class}}"),
                        unit="short",
                        stacked=True,
                    ),
                    graph(
                        "Confidence",
                        "Probability of the predicted class, from the bounds of its buckets.",
                        quantile(0.5, "model_confidence", NS, "median"),
                        quantile(0.05, "model_confidence", NS, "lowest 5 % below"),
                        unit="percentunit",
                        min=0,
                        max=1,
                    ),
                    table(
                        "Alerts firing",
                        "IrisApiWatchdog is always here: it proves that alerting works.",
                        'max by (alertname, severity, component) (ALERTS{alertstate="firing"})',
                        width=8,
                    ),
                ],
            ),
        ],
    )


def model() -> Json:
    return dashboard(
        "iris-model",
        "iris-api / Model",
        "What the model in use answers, whether its inputs still look as they did at training, and why a newer one is refused.",
        [NAMESPACE, FEATURE],
        [
            (
                "In use",
                [
                    table(
                        "Models in use",
                        "One line per version, digest and way to compute.",
                        f"count by (version, digest, predictor, source) (model_info{{{NS}}})",
                        width=12,
                    ),
                    graph(
                        "Replicas by version",
                        "A swap is a step from one line to the other.",
                        query(f"count by (version) (model_info{{{NS}}} == 1)", "{{version}}"),
                        width=6,
                    ),
                    graph(
                        "Refused",
                        "1 while a published model is refused for this reason; the one before keeps serving.",
                        query(f"max by (reason) (model_refused{{{NS}}})", "{{reason}}"),
                        width=6,
                        max=1,
                    ),
                ],
            ),
            (
                "Drift",
                [
                    graph(
                        "Inputs, last hour",
                        "PSI per feature, of all replicas together. Below 0.1: as at training; above 0.2: act. Needs some hundred rows.",
                        query(
                            f"max by (feature, model_version) (iris:input_psi:1h{{{NS}}})", "{{feature}} (model {{model_version}})"
                        ),
                        thresholds=((0.1, "orange"), (0.2, "red")),
                    ),
                    graph(
                        "Inputs, last day",
                        "The same over a day, for quiet services and slow changes.",
                        query(
                            f"max by (feature, model_version) (iris:input_psi:1d{{{NS}}})", "{{feature}} (model {{model_version}})"
                        ),
                        thresholds=((0.1, "orange"), (0.2, "red")),
                    ),
                    graph(
                        "Predictions",
                        "PSI of the mix of predictions against the training target.",
                        query(f"max by (model_version) (iris:prediction_psi:1h{{{NS}}})", "hour, model {{model_version}}"),
                        query(f"max by (model_version) (iris:prediction_psi:1d{{{NS}}})", "day, model {{model_version}}"),
                        thresholds=((0.1, "orange"), (0.2, "red")),
                    ),
                    bars(
                        "$feature: rows of the last hour by bin",
                        "Where the values fall now; compare with the panel beside.",
                        query(f'max by (bin) (iris:input_bin:share1h{{feature="$feature", {NS}}})', "{{bin}}"),
                        max=1,
                    ),
                    bars(
                        "$feature: rows of the training by bin",
                        "Where they fell at training.",
                        query(f'max by (bin) (iris:input_bin:expected{{feature="$feature", {NS}}})', "{{bin}}"),
                        max=1,
                    ),
                    graph(
                        "Values outside the range of training",
                        "Per second and feature; they are answered, but the model guesses.",
                        query(f"sum by (feature) (rate(model_input_out_of_range_total{{{NS}}}{RATE}))", "{{feature}}"),
                    ),
                    graph(
                        "Rows behind the drift figures",
                        "Rows of the last hour and day; alerts wait for 500.",
                        query(f"max by (model_version) (iris:prediction_rows:increase1h{{{NS}}})", "hour, model {{model_version}}"),
                        query(f"max by (model_version) (iris:prediction_rows:increase1d{{{NS}}})", "day, model {{model_version}}"),
                        thresholds=((500, "green"),),
                    ),
                    graph(
                        "Mix of predictions, last hour",
                        "Shares of the classes (or of the bins of a regression's target).",
                        query(f"max by (bin) (iris:prediction_bin:share1h{{{NS}}})", "{{bin}}"),
                        query(f"max by (bin) (iris:prediction_bin:expected{{{NS}}})", "{{bin}} at training"),
                        unit="percentunit",
                    ),
                ],
            ),
            (
                "Answers",
                [
                    graph(
                        "Unsure answers",
                        "Share of the predictions with a probability of at most 0.7.",
                        query(
                            f'sum(rate(model_confidence_bucket{{le="0.7", {NS}}}{RATE})) / (sum(rate(model_confidence_count{{{NS}}}{RATE})) > 0)',
                            "at most 0.7",
                        ),
                        unit="percentunit",
                        min=0,
                    ),
                    graph(
                        "Rows per request",
                        "Rows divided by requests.",
                        query(
                            f"sum(rate(model_rows_per_request_sum{{{NS}}}{RATE})) / (sum(rate(model_rows_per_request_count{{{NS}}}{RATE})) > 0)",
                            "mean",
                        ),
                    ),
                    graph(
                        "Swaps and refusals",
                        "Candidates that replicas looked at since they started, summed over the replicas.",
                        query(f"sum by (result) (model_swaps_total{{{NS}}})", "{{result}}"),
                        query(f"max(model_load_seconds{{{NS}}})", "seconds the last load took"),
                    ),
                ],
            ),
        ],
    )


def ray() -> Json:
    pod = f'{NS}, pod=~"$pod"'
    return dashboard(
        "iris-ray-kubernetes",
        "iris-api / Ray and Kubernetes",
        "The machinery: replicas and scaling, pods, HAProxy, memory, and whether everything is scraped.",
        [NAMESPACE, POD],
        [
            (
                "Replicas and scaling",
                [
                    graph(
                        "Replicas",
                        "Wanted by the load, aimed at within the bounds, healthy. Wanted above aimed at: the maximum is too small.",
                        query(f"max(ray_serve_autoscaling_desired_replicas{{{NS}}})", "wanted"),
                        query(f"max(ray_serve_autoscaling_target_replicas{{{NS}}})", "aimed at"),
                        query(f"sum(ray_serve_deployment_replica_healthy{{{NS}}})", "healthy"),
                    ),
                    graph(
                        "Worker pods",
                        "As the Ray autoscaler sees them.",
                        query(f"sum by (NodeType) (autoscaler_active_nodes{{{NS}}})", "{{NodeType}} active"),
                        query(f"sum by (NodeType) (autoscaler_pending_nodes{{{NS}}})", "{{NodeType}} pending"),
                    ),
                    graph(
                        "Starts nobody asked for",
                        "Replicas started in ten minutes beyond what scaling asked for: they died.",
                        query(f"max by (application) (iris:unwanted_replica_starts:increase10m{{{NS}}})", "{{application}}"),
                        thresholds=((2.5, "red"),),
                    ),
                    graph(
                        "State of the application",
                        "6 is running, 5 deploying, 1 a failed deployment.",
                        query(f"min by (application) (ray_serve_application_status{{{NS}}})", "{{application}}"),
                        query(f"min by (deployment) (ray_serve_deployment_status{{{NS}}})", "{{deployment}}"),
                        max=6,
                        min=0,
                    ),
                    graph(
                        "Serve's control loop",
                        "Seconds per turn; it decides on scaling and repairs.",
                        query(f"max(ray_serve_controller_control_loop_duration_s{{{NS}}})", "turn"),
                        unit="s",
                    ),
                    graph(
                        "Time a replica takes to start",
                        "From the decision to the first request it may get.",
                        quantile(0.95, "ray_serve_replica_startup_latency_ms", NS, "95 % within"),
                        unit="ms",
                    ),
                ],
            ),
            (
                "HAProxy",
                [
                    graph(
                        "Answers by code",
                        "What clients got, health checks of the pods left out.",
                        query(
                            f'sum by (code) (rate(haproxy_backend_http_responses_total{{proxy=~"http-.+", {pod}}}{RATE})) > 0',
                            "{{code}}",
                        ),
                        unit="reqps",
                    ),
                    graph(
                        "Retries",
                        "Requests that were tried again, or at another replica: a replica went away.",
                        query(f"sum(rate(haproxy_backend_retry_warnings_total{{{pod}}}{RATE}))", "tried again"),
                        query(f"sum(rate(haproxy_backend_redispatch_warnings_total{{{pod}}}{RATE}))", "tried elsewhere"),
                        query(f"sum(rate(haproxy_backend_connection_errors_total{{{pod}}}{RATE}))", "no connection"),
                    ),
                    graph(
                        "Replicas it may use",
                        "By pod; the fallback to Serve's own proxy counts as one.",
                        query(f'sum by (pod) (haproxy_server_status{{state="UP", {pod}}})', "{{pod}}"),
                    ),
                    graph(
                        "Connections",
                        "Open now, by pod.",
                        query(f"sum by (pod) (haproxy_process_current_connections{{{pod}}})", "{{pod}}"),
                    ),
                    graph(
                        "Idle time",
                        "Percent of its thread that HAProxy has left.",
                        query(f"min by (pod) (haproxy_process_idle_time_percent{{{pod}}})", "{{pod}}"),
                        unit="percent",
                        min=0,
                        max=100,
                    ),
                    graph(
                        "Mean time to answer",
                        "Of the last 1024 requests of each HAProxy, network and waiting included.",
                        query(
                            f'max by (pod) (haproxy_backend_response_time_average_seconds{{proxy=~"http-.+", {pod}}})', "{{pod}}"
                        ),
                        unit="s",
                    ),
                ],
            ),
            (
                "Pods",
                [
                    graph(
                        "Pods by phase",
                        "All pods of the namespace.",
                        query(f"sum by (phase) (kube_pod_status_phase{{{NS}}}) > 0", "{{phase}}"),
                        stacked=True,
                    ),
                    graph(
                        "Memory of the containers",
                        "Share of the limit; at 100 % the container is killed.",
                        query(
                            f"max by (pod, container) (container_memory_working_set_bytes{{{pod}}}) "
                            f'/ max by (pod, container) (kube_pod_container_resource_limits{{resource="memory", {pod}}})',
                            "{{pod}} {{container}}",
                        ),
                        unit="percentunit",
                        thresholds=((0.9, "red"),),
                    ),
                    graph(
                        "CPU of the containers",
                        "Cores used.",
                        query(
                            f"sum by (pod, container) (rate(container_cpu_usage_seconds_total{{{pod}}}{RATE}))",
                            "{{pod}} {{container}}",
                        ),
                    ),
                    graph(
                        "Restarts",
                        "Since each pod was made.",
                        query(f"sum by (pod) (kube_pod_container_status_restarts_total{{{NS}}})", "{{pod}}"),
                    ),
                    graph(
                        "Memory of Ray's processes",
                        "Resident bytes by process.",
                        query(f"sum by (Component) (ray_component_rss_bytes{{{pod}}})", "{{Component}}"),
                        unit="bytes",
                    ),
                    graph(
                        "Room for models",
                        "Free share of the volume that holds the store.",
                        query(f"min(model_store_free_bytes{{{NS}}} / model_store_size_bytes{{{NS}}})", "store"),
                        unit="percentunit",
                        min=0,
                        max=1,
                        thresholds=((0.15, "green"),),
                        base="red",
                    ),
                    table("What is scraped", "Value 0: the target does not answer.", "min by (job, pod) (up)", width=12, hidden=()),
                    graph(
                        "Time of a scrape",
                        "Longest by job.",
                        query("max by (job) (scrape_duration_seconds)", "{{job}}"),
                        unit="s",
                        width=12,
                    ),
                ],
            ),
        ],
    )


def training() -> Json:
    return dashboard(
        "iris-training",
        "iris-api / Training",
        "How the last training ended, what MLflow does, and how old the served model is.",
        [NAMESPACE],
        [
            (
                "Outcome",
                [
                    stat(
                        "Last verdict",
                        "accepted: published; forced: published though it was not good enough; refused: not published.",
                        query(f"max by (verdict) (training_last_verdict{{{NS}}}) == 1", "{{verdict}}"),
                        named=True,
                        width=6,
                    ),
                    stat(
                        "Last training",
                        "Time since it ended with a verdict.",
                        query(f"time() - max(training_last_timestamp_seconds{{{NS}}})"),
                        unit="s",
                        width=6,
                    ),
                    stat(
                        "Age of the served model",
                        "Older than the last training: that one was refused, or is not served yet.",
                        query(f"max(iris:model_age_seconds:max{{{NS}}})"),
                        unit="s",
                        width=6,
                        thresholds=((30 * 86400, "orange"), (45 * 86400, "red")),
                    ),
                    stat(
                        "Rows of the training table",
                        "Behind the model in use.",
                        query(f"max(model_reference_rows{{{NS}}})"),
                        width=6,
                        decimals=0,
                    ),
                ],
            ),
            (
                "Jobs and MLflow",
                [
                    graph(
                        "Training jobs",
                        "By state, as the KubeRay operator tells (its metrics must be on).",
                        query(f"sum by (deployment_status) (kuberay_job_deployment_status{{{NS}}} == 1)", "{{deployment_status}}"),
                    ),
                    graph(
                        "Pods of the training",
                        "Running or waiting, by phase.",
                        query(f'sum by (phase) (kube_pod_status_phase{{pod=~"iris-train-.*", {NS}}})', "{{phase}}"),
                    ),
                    graph(
                        "MLflow answers",
                        "1 while its health check passes.",
                        query(f'max(kube_deployment_status_replicas_available{{deployment="mlflow-server", {NS}}})', "MLflow"),
                        min=0,
                        max=1,
                    ),
                    graph(
                        "Memory of MLflow and of the training",
                        "Bytes in use.",
                        query(
                            f'sum by (pod) (container_memory_working_set_bytes{{pod=~"(mlflow-server|iris-train)-.*", {NS}}})',
                            "{{pod}}",
                        ),
                        unit="bytes",
                        width=12,
                    ),
                    graph(
                        "CPU of MLflow and of the training",
                        "Cores in use.",
                        query(
                            f'sum by (pod) (rate(container_cpu_usage_seconds_total{{pod=~"(mlflow-server|iris-train)-.*", {NS}}}{RATE}))',
                            "{{pod}}",
                        ),
                        width=12,
                    ),
                ],
            ),
        ],
    )


def files() -> dict[str, str]:
    """The text of each dashboard by the name of its file."""
    made = {"overview": overview(), "model": model(), "ray-kubernetes": ray(), "training": training()}
    return {f"{name}.json": json.dumps(content, indent=1) + "\n" for name, content in made.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)
