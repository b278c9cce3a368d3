"""Writes the Grafana dashboards: `python -m monitoring.dashboards`. A test compares the files with `files()`."""

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
    """A quantile of a histogram as a query. `share` is 0 to 1; `by` keeps one more label than the bucket's bound."""
    group = f"le, {by}" if by else "le"
    return query(f"histogram_quantile({share}, sum by ({group}) (rate({metric}_bucket{{{labels}}}{RATE})))", legend)


def overview() -> Json:
    """The dashboard of the whole service: traffic, errors, latency, saturation."""
    return dashboard(
        "iris-overview",
        "iris-api / Overview",
        "The state of the service: traffic, errors, latency, saturation, and the model in use.",
        [NAMESPACE],
        [
            (
                "Now",
                [
                    stat(
                        "Replicas with a model",
                        "Number of replicas that have loaded a model and can answer predictions.",
                        query(f"sum(model_loaded{{{NS}}})"),
                        thresholds=((1, "green"),),
                        base="red",
                    ),
                    stat(
                        "Version in use",
                        "The version of the served model. During a swap the replicas serve two versions for some seconds.",
                        query(f"count by (version) (model_info{{{NS}}} == 1)", "{{version}}"),
                        named=True,
                    ),
                    stat(
                        "Age of the model",
                        "Time since the served model was trained.",
                        query(f"max(iris:model_age_seconds:max{{{NS}}})"),
                        unit="s",
                        thresholds=((30 * 86400, "orange"), (45 * 86400, "red")),
                    ),
                    stat(
                        "Availability, 3 days",
                        "Share of the requests without a 5xx response. The objective is 99.9 %.",
                        query(f"1 - max(iris:errors:ratio3d{{{NS}}})"),
                        unit="percentunit",
                        decimals=3,
                        base="red",
                        thresholds=((0.999, "green"),),
                    ),
                    stat(
                        "Within 100 ms, 3 days",
                        "Share of the predictions that a replica answered within 100 ms. The objective is 99 %.",
                        query(f"1 - max(iris:slow:ratio3d{{{NS}}})"),
                        unit="percentunit",
                        decimals=2,
                        base="red",
                        thresholds=((0.99, "green"),),
                    ),
                    stat(
                        "Predictions, 24 hours",
                        "Number of predicted rows.",
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
                        "Requests per second that HAProxy forwarded, by status code. A refused gRPC call counts as 2xx.",
                        query(
                            f'sum by (code) (rate(haproxy_backend_http_responses_total{{proxy=~"(http|grpc)-.+", {NS}}}{RATE})) > 0',
                            "{{code}}",
                        ),
                        unit="reqps",
                        stacked=True,
                    ),
                    graph(
                        "Errors",
                        "Requests per second that ended in an error, by the type of the error.",
                        query(f"sum by (error_type) (rate(api_errors_total{{{NS}}}{RATE}))", "{{error_type}}"),
                        unit="reqps",
                    ),
                    graph(
                        "Latency of predictions",
                        "Time to answer a prediction, measured in the replica. The objective is 100 ms for 99 % of the predictions.",
                        quantile(0.5, "http_request_duration_seconds", PREDICT, "median"),
                        quantile(0.95, "http_request_duration_seconds", PREDICT, "95th percentile"),
                        quantile(0.99, "http_request_duration_seconds", PREDICT, "99th percentile"),
                        unit="s",
                        thresholds=((0.1, "red"),),
                    ),
                    graph(
                        "CPU of the replicas",
                        "CPU of each replica in percent of a core. A replica cannot use more than one core (100 %).",
                        query(f'ray_component_cpu_percentage{{Component=~"ray::ServeReplica.*", {NS}}}', "{{pod}}"),
                        unit="percent",
                        thresholds=((85, "red"),),
                    ),
                    graph(
                        "Requests in flight",
                        "Number of requests that replicas are answering, and number of requests that wait in HAProxy.",
                        query(f"sum(http_requests_in_flight{{{NS}}})", "in replicas"),
                        query(f'sum(haproxy_backend_current_queue{{proxy=~"(http|grpc)-.+", {NS}}})', "waiting in HAProxy"),
                    ),
                    graph(
                        "Burn rate of the error budget",
                        "Share of failed requests divided by the objective of 0.1 %. At 1, the budget lasts 30 days.",
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
                        "Requests by protocol and format",
                        "Requests per second for predictions, by protocol and by the format of the request.",
                        query(
                            f'sum by (protocol, format) (rate(http_requests_total{{format!="", {NS}}}{RATE})) > 0',
                            "{{protocol}}, {{format}}",
                        ),
                        unit="reqps",
                        stacked=True,
                    ),
                    graph(
                        "Refused requests by protocol",
                        "Requests per second with a 4xx or 5xx response, or the equivalent of gRPC, by protocol.",
                        query(
                            f'sum by (protocol, status_class) (rate(http_requests_total{{status_class=~"4xx|5xx", {NS}}}{RATE})) > 0',
                            "{{protocol}}, {{status_class}}",
                        ),
                        unit="reqps",
                        stacked=True,
                    ),
                    graph(
                        "Predictions by class",
                        "Predicted rows per second, by predicted class.",
                        query(f"sum by (predicted_class) (rate(model_predictions_total{{{NS}}}{RATE}))", "{{predicted_class}}"),
                        unit="short",
                        stacked=True,
                    ),
                    graph(
                        "Confidence",
                        "Probability of the predicted class, estimated from the buckets of a histogram.",
                        quantile(0.5, "model_confidence", NS, "median"),
                        quantile(0.05, "model_confidence", NS, "5th percentile"),
                        unit="percentunit",
                        min=0,
                        max=1,
                    ),
                    table(
                        "Alerts firing",
                        "Alerts that fire now. IrisApiWatchdog always fires, because it proves that alerting works.",
                        'max by (alertname, severity, component) (ALERTS{alertstate="firing"})',
                        width=8,
                    ),
                ],
            ),
        ],
    )


def model() -> Json:
    """The dashboard of the served model: versions, drift, predictions."""
    return dashboard(
        "iris-model",
        "iris-api / Model",
        "The served model: its predictions, the drift of its inputs, and the reason when a newer model is refused.",
        [NAMESPACE, FEATURE],
        [
            (
                "In use",
                [
                    table(
                        "Models in use",
                        "One line for each version, digest and predictor. The column model_source is IRIS_MODEL_SOURCE.",
                        f"count by (version, digest, predictor, source, model_source) (model_info{{{NS}}})",
                        width=12,
                    ),
                    graph(
                        "Replicas by version",
                        "Number of replicas that serve each version.",
                        query(f"count by (version) (model_info{{{NS}}} == 1)", "{{version}}"),
                        width=6,
                    ),
                    graph(
                        "Refused models",
                        "1 while replicas refuse the published model for this reason. They keep serving the previous model.",
                        query(f"max by (reason) (model_refused{{{NS}}})", "{{reason}}"),
                        width=6,
                        max=1,
                    ),
                    graph(
                        "Age of the last refresh",
                        "Time since each replica last followed the store's pointer. An alert fires above five minutes.",
                        query(f"max by (replica) (model_refresh_age_seconds{{{NS}}})", "{{replica}}"),
                        unit="s",
                        thresholds=((300, "red"),),
                        width=12,
                    ),
                    graph(
                        "Alias in MLflow",
                        "1 while a replica gets no version for its alias from MLflow. Empty with IRIS_MODEL_SOURCE=store.",
                        query(f"max by (replica) (model_registry_unreachable{{{NS}}})", "{{replica}}"),
                        width=12,
                        min=0,
                        max=1,
                    ),
                ],
            ),
            (
                "Drift",
                [
                    graph(
                        "Drift of the inputs, last hour",
                        "PSI of each feature over all replicas. Below 0.1, the inputs match the training data.",
                        query(
                            f"max by (feature, model_version) (iris:input_psi:1h{{{NS}}})", "{{feature}} (model {{model_version}})"
                        ),
                        thresholds=((0.1, "orange"), (0.2, "red")),
                    ),
                    graph(
                        "Drift of the inputs, last day",
                        "PSI of each feature over a day. It shows slow changes, and suits services with few requests.",
                        query(
                            f"max by (feature, model_version) (iris:input_psi:1d{{{NS}}})", "{{feature}} (model {{model_version}})"
                        ),
                        thresholds=((0.1, "orange"), (0.2, "red")),
                    ),
                    graph(
                        "Drift of the predictions",
                        "PSI of the predictions against the target of the training data.",
                        query(f"max by (model_version) (iris:prediction_psi:1h{{{NS}}})", "hour, model {{model_version}}"),
                        query(f"max by (model_version) (iris:prediction_psi:1d{{{NS}}})", "day, model {{model_version}}"),
                        thresholds=((0.1, "orange"), (0.2, "red")),
                    ),
                    bars(
                        "$feature: requests of the last hour by bin",
                        "Share of the requested rows in each bin. Compare it with the panel of the training rows.",
                        query(f'max by (bin) (iris:input_bin:share1h{{feature="$feature", {NS}}})', "{{bin}}"),
                        max=1,
                    ),
                    bars(
                        "$feature: training rows by bin",
                        "Share of the training rows in each bin.",
                        query(f'max by (bin) (iris:input_bin:expected{{feature="$feature", {NS}}})', "{{bin}}"),
                        max=1,
                    ),
                    graph(
                        "Values outside the range of the training data",
                        "Values per second, by feature. These rows are predicted, but the model has not seen such values.",
                        query(f"sum by (feature) (rate(model_input_out_of_range_total{{{NS}}}{RATE}))", "{{feature}}"),
                    ),
                    graph(
                        "Rows in the drift figures",
                        "Number of rows in the last hour and the last day. The alerts need 500.",
                        query(f"max by (model_version) (iris:prediction_rows:increase1h{{{NS}}})", "hour, model {{model_version}}"),
                        query(f"max by (model_version) (iris:prediction_rows:increase1d{{{NS}}})", "day, model {{model_version}}"),
                        thresholds=((500, "green"),),
                    ),
                    graph(
                        "Distribution of the predictions, last hour",
                        "Share of each class, or of each bin of a regression's target, now and at training.",
                        query(f"max by (bin) (iris:prediction_bin:share1h{{{NS}}})", "{{bin}}"),
                        query(f"max by (bin) (iris:prediction_bin:expected{{{NS}}})", "{{bin}} at training"),
                        unit="percentunit",
                    ),
                ],
            ),
            (
                "Predictions and loads",
                [
                    graph(
                        "Predictions with low confidence",
                        "Share of the predictions whose probability is at most 0.7.",
                        query(
                            f'sum(rate(model_confidence_bucket{{le="0.7", {NS}}}{RATE})) / (sum(rate(model_confidence_count{{{NS}}}{RATE})) > 0)',
                            "at most 0.7",
                        ),
                        unit="percentunit",
                        min=0,
                    ),
                    graph(
                        "Rows per request",
                        "Mean number of rows in a request.",
                        query(
                            f"sum(rate(model_rows_per_request_sum{{{NS}}}{RATE})) / (sum(rate(model_rows_per_request_count{{{NS}}}{RATE})) > 0)",
                            "mean",
                        ),
                    ),
                    graph(
                        "Swaps and refusals",
                        "Number of models that the replicas loaded or refused since they started, over all replicas.",
                        query(f"sum by (result) (model_swaps_total{{{NS}}})", "{{result}}"),
                        query(f"max(model_load_seconds{{{NS}}})", "duration of the last load in seconds"),
                    ),
                ],
            ),
        ],
    )


def ray() -> Json:
    """The dashboard of the infrastructure: Ray Serve, HAProxy, pods."""
    pod = f'{NS}, pod=~"$pod"'
    return dashboard(
        "iris-ray-kubernetes",
        "iris-api / Ray and Kubernetes",
        "The infrastructure: replicas and scaling, HAProxy, pods, and the scrape targets.",
        [NAMESPACE, POD],
        [
            (
                "Replicas and scaling",
                [
                    graph(
                        "Replicas",
                        "Number of replicas. Desired is what the load needs; target is the same within the configured bounds.",
                        query(f"max(ray_serve_autoscaling_desired_replicas{{{NS}}})", "desired"),
                        query(f"max(ray_serve_autoscaling_target_replicas{{{NS}}})", "target"),
                        query(f"sum(ray_serve_deployment_replica_healthy{{{NS}}})", "healthy"),
                    ),
                    graph(
                        "Worker pods",
                        "Number of Ray nodes by group, as the Ray autoscaler reports them.",
                        query(f"sum by (NodeType) (autoscaler_active_nodes{{{NS}}})", "{{NodeType}} active"),
                        query(f"sum by (NodeType) (autoscaler_pending_nodes{{{NS}}})", "{{NodeType}} pending"),
                    ),
                    graph(
                        "Unexpected replica starts",
                        "Replica starts within ten minutes that the autoscaler did not ask for. They replace replicas that died.",
                        query(f"max by (application) (iris:unwanted_replica_starts:increase10m{{{NS}}})", "{{application}}"),
                        thresholds=((2.5, "red"),),
                    ),
                    graph(
                        "Status of the application",
                        "6 is RUNNING (HEALTHY for a deployment), 5 is DEPLOYING, 1 is DEPLOY_FAILED.",
                        query(f"min by (application) (ray_serve_application_status{{{NS}}})", "{{application}}"),
                        query(f"min by (deployment) (ray_serve_deployment_status{{{NS}}})", "{{deployment}}"),
                        max=6,
                        min=0,
                    ),
                    graph(
                        "Control loop of Ray Serve",
                        "Duration of one iteration of the controller, which scales and replaces replicas.",
                        query(f"max(ray_serve_controller_control_loop_duration_s{{{NS}}})", "iteration"),
                        unit="s",
                    ),
                    graph(
                        "Start of a replica",
                        "Time from the decision to start a replica until it can get requests.",
                        quantile(0.95, "ray_serve_replica_startup_latency_ms", NS, "95th percentile"),
                        unit="ms",
                    ),
                ],
            ),
            (
                "HAProxy",
                [
                    graph(
                        "Responses by status code",
                        "Responses per second that clients got, without the health checks of the pods.",
                        query(
                            f'sum by (code) (rate(haproxy_backend_http_responses_total{{proxy=~"(http|grpc)-.+", {pod}}}{RATE})) > 0',
                            "{{code}}",
                        ),
                        unit="reqps",
                    ),
                    graph(
                        "Retries",
                        "Requests per second that HAProxy sent again because a replica ended.",
                        query(f"sum(rate(haproxy_backend_retry_warnings_total{{{pod}}}{RATE}))", "same replica"),
                        query(f"sum(rate(haproxy_backend_redispatch_warnings_total{{{pod}}}{RATE}))", "other replica"),
                        query(f"sum(rate(haproxy_backend_connection_errors_total{{{pod}}}{RATE}))", "connection errors"),
                    ),
                    graph(
                        "Servers in use",
                        "Number of servers that each HAProxy uses: the replicas, and Serve's proxy as a fallback.",
                        query(f'sum by (pod) (haproxy_server_status{{proxy=~"http-.+", state="UP", {pod}}})', "{{pod}}"),
                    ),
                    graph(
                        "Connections",
                        "Number of open connections, by pod of HAProxy.",
                        query(f"sum by (pod) (haproxy_process_current_connections{{{pod}}})", "{{pod}}"),
                    ),
                    graph(
                        "Idle time of HAProxy",
                        "Share of the time in which the thread of HAProxy is idle.",
                        query(f"min by (pod) (haproxy_process_idle_time_percent{{{pod}}})", "{{pod}}"),
                        unit="percent",
                        min=0,
                        max=100,
                    ),
                    graph(
                        "Mean response time",
                        "Mean over the last 1024 requests of each HAProxy, with the time in the network and in the queue.",
                        query(
                            f'max by (pod) (haproxy_backend_response_time_average_seconds{{proxy=~"(http|grpc)-.+", {pod}}})',
                            "{{pod}}",
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
                        "Number of pods in the namespace, by phase.",
                        query(f"sum by (phase) (kube_pod_status_phase{{{NS}}}) > 0", "{{phase}}"),
                        stacked=True,
                    ),
                    graph(
                        "Memory of the containers",
                        "Share of the memory limit. The kernel kills a container at 100 %.",
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
                        "Number of cores in use, by container.",
                        query(
                            f"sum by (pod, container) (rate(container_cpu_usage_seconds_total{{{pod}}}{RATE}))",
                            "{{pod}} {{container}}",
                        ),
                    ),
                    graph(
                        "Restarts",
                        "Number of restarts since the pod was created.",
                        query(f"sum by (pod) (kube_pod_container_status_restarts_total{{{NS}}})", "{{pod}}"),
                    ),
                    graph(
                        "Memory of Ray's processes",
                        "Resident memory, by process.",
                        query(f"sum by (Component) (ray_component_rss_bytes{{{pod}}})", "{{Component}}"),
                        unit="bytes",
                    ),
                    graph(
                        "Free space for models",
                        "Free share of the volume that holds the models.",
                        query(f"min(model_store_free_bytes{{{NS}}} / model_store_size_bytes{{{NS}}})", "store"),
                        unit="percentunit",
                        min=0,
                        max=1,
                        thresholds=((0.15, "green"),),
                        base="red",
                    ),
                    table(
                        "Scrape targets",
                        "Targets of Prometheus by job and pod. The value 0 means that the target does not answer.",
                        "min by (job, pod) (up)",
                        width=12,
                        hidden=(),
                    ),
                    graph(
                        "Duration of scrapes",
                        "Longest scrape of each job.",
                        query("max by (job) (scrape_duration_seconds)", "{{job}}"),
                        unit="s",
                        width=12,
                    ),
                ],
            ),
        ],
    )


def training() -> Json:
    """The dashboard of training: verdicts, jobs, MLflow."""
    return dashboard(
        "iris-training",
        "iris-api / Training",
        "The verdict of the last training, the jobs that train and adopt, MLflow, and the age of the served model.",
        [NAMESPACE],
        [
            (
                "Outcome",
                [
                    stat(
                        "Last verdict",
                        "A forced model was published although it was not good enough. A refused model was not published.",
                        query(f"max by (verdict) (training_last_verdict{{{NS}}}) == 1", "{{verdict}}"),
                        named=True,
                        width=6,
                    ),
                    stat(
                        "Last training",
                        "Time since the last training ended with a verdict.",
                        query(f"time() - max(training_last_timestamp_seconds{{{NS}}})"),
                        unit="s",
                        width=6,
                    ),
                    stat(
                        "Age of the served model",
                        "Time since the served model was trained. If the last training is newer, its model is not served.",
                        query(f"max(iris:model_age_seconds:max{{{NS}}})"),
                        unit="s",
                        width=6,
                        thresholds=((30 * 86400, "orange"), (45 * 86400, "red")),
                    ),
                    stat(
                        "Rows of the training table",
                        "Number of training rows of the served model.",
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
                        "Number of training jobs, by status. The panel needs the metrics of the KubeRay operator.",
                        query(f"sum by (deployment_status) (kuberay_job_deployment_status{{{NS}}} == 1)", "{{deployment_status}}"),
                        width=6,
                    ),
                    graph(
                        "Adopting job",
                        "1 while the last Job that adopts a model is failed or complete. Empty when there is no such Job.",
                        query(f'max(kube_job_failed{{job_name="iris-adopt-job", condition="true", {NS}}})', "failed"),
                        query(f'max(kube_job_complete{{job_name="iris-adopt-job", condition="true", {NS}}})', "complete"),
                        width=6,
                        min=0,
                        max=1,
                    ),
                    graph(
                        "Pods that train or adopt",
                        "Number of pods that train or adopt a model, by phase.",
                        query(f'sum by (phase) (kube_pod_status_phase{{pod=~"iris-(train|adopt)-.*", {NS}}})', "{{phase}}"),
                        width=6,
                    ),
                    graph(
                        "MLflow is ready",
                        "1 while the health check of MLflow passes.",
                        query(f'max(kube_deployment_status_replicas_available{{deployment="mlflow-server", {NS}}})', "MLflow"),
                        width=6,
                        min=0,
                        max=1,
                    ),
                    graph(
                        "Memory of MLflow, of training and of adopting",
                        "Memory in use, by pod.",
                        query(
                            f'sum by (pod) (container_memory_working_set_bytes{{pod=~"(mlflow-server|iris-train|iris-adopt)-.*", {NS}}})',
                            "{{pod}}",
                        ),
                        unit="bytes",
                        width=12,
                    ),
                    graph(
                        "CPU of MLflow, of training and of adopting",
                        "Number of cores in use, by pod.",
                        query(
                            f'sum by (pod) (rate(container_cpu_usage_seconds_total{{pod=~"(mlflow-server|iris-train|iris-adopt)-.*", {NS}}}{RATE}))',
                            "{{pod}}",
                        ),
                        width=12,
                    ),
                ],
            ),
        ],
    )


def files() -> dict[str, str]:
    """The JSON text of each dashboard, by the name of its file."""
    dashboards = {"overview": overview(), "model": model(), "ray-kubernetes": ray(), "training": training()}
    return {f"{name}.json": json.dumps(content, indent=1) + "\n" for name, content in dashboards.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)
