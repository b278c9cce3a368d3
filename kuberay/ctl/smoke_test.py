"""test: check the health, send a prediction with the key from the Secret, and print the model and a verdict."""

from __future__ import annotations

from kuberay.ctl.api_client import connect
from kuberay.ctl.kube import Cluster, CommandError, echo

ROW = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}


def smoke_test(cluster: Cluster) -> None:
    """Print the answers of the API; raises CommandError when the prediction fails."""
    with connect(cluster) as client:
        try:
            health = client.request("/health")
            prediction = client.request("/predict", ROW)
            model = client.request("/model/info")
        except OSError as error:
            raise CommandError(f"the API does not answer ({error}): run `make k8s-doctor`") from None
    echo(f"health      {health.status}  {health.body.get('status')}, model_loaded={health.body.get('model_loaded')}")
    echo(f"prediction  {prediction.status}  {prediction.body.get('prediction', prediction.body.get('detail'))}")
    echo(f"model       {model.status}  version {model.version}, {model.body.get('model_type', model.body.get('detail'))}")
    if prediction.status == 503:
        raise CommandError("the API runs but has no model yet: run `make k8s-train`")
    if prediction.status in (401, 403):
        raise CommandError(
            "the replicas do not accept the API_KEY of the Secret: they get a changed key within two minutes, so try again; "
            "they refuse a key that can be guessed, so create it with `openssl rand -hex 32`"
        )
    if prediction.status == 422:
        echo("the served model does not have the iris features, so no prediction was tested: see /docs")
    elif prediction.status != 200:
        raise CommandError(f"the prediction failed with {prediction.status}: run `make k8s-logs`")
    echo("verdict: the API works")
