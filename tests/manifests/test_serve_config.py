"""serveConfigV2 is a string to Kubernetes: nobody but Ray knows whether it is right, and Ray tells it only on the cluster."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeApplicationSchema, ServeDeploySchema, gRPCOptionsSchema

from serve_app import deployment
from serve_app.rayserve import grpc_services
from tests.manifests.shipped import Json, one


@pytest.fixture(scope="module")
def config() -> Json:
    config: Json = yaml.safe_load(one("RayService", "iris-api")["spec"]["serveConfigV2"])
    return config


@pytest.fixture(scope="module")
def api(config: Json) -> Json:
    application: Json
    (application,) = config["applications"]
    return application


def unknown(model: type[BaseModel], document: Json) -> set[str]:
    aliases = {field.alias for field in model.model_fields.values() if field.alias}
    return set(document) - set(model.model_fields) - aliases


def test_ray_accepts_it(config: Json) -> None:
    assert ServeDeploySchema.model_validate(config)


def test_ray_knows_every_key_in_it(config: Json, api: Json) -> None:
    assert unknown(ServeDeploySchema, config) == set()
    assert unknown(gRPCOptionsSchema, config["grpc_options"]) == set()
    assert unknown(ServeApplicationSchema, api) == set()
    for one_deployment in api["deployments"]:
        assert unknown(DeploymentSchema, one_deployment) == set()
        assert unknown(AutoscalingConfig, one_deployment["autoscaling_config"]) == set()
        assert unknown(RayActorOptionsSchema, one_deployment["ray_actor_options"]) == set()


def test_grpc_is_switched_on_as_on_a_laptop_without_reflection(config: Json) -> None:
    assert config["grpc_options"] == grpc_services.grpc_options(9000, reflection=False)


def test_the_schema_would_have_told_a_mistake(config: Json) -> None:
    wrong = {**config, "applications": [{**config["applications"][0], "import_path": "no path"}]}
    with pytest.raises(ValueError, match="import"):
        ServeDeploySchema.model_validate(wrong)


def test_it_deploys_what_the_code_defines(api: Json) -> None:
    module, _, attribute = api["import_path"].partition(":")
    assert (module, attribute) == (deployment.__name__, "app")
    assert api["name"] == deployment.APPLICATION
    assert [item["name"] for item in api["deployments"]] == [deployment.IrisApi.name]  # type: ignore[attr-defined]


def test_the_autoscaling_is_ours_and_scales_from_two_to_ten(api: Json) -> None:
    (item,) = api["deployments"]
    scaling = AutoscalingConfig.model_validate(item["autoscaling_config"])
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 10)
    assert scaling.downscale_delay_s == 300
    module, _, function = item["autoscaling_config"]["policy"]["policy_function"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_worker_group_has_room_for_as_many_replicas_as_serve_may_start(api: Json) -> None:
    group = one("RayService", "iris-api")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    cpus = int(group["rayStartParams"]["num-cpus"])
    (item,) = api["deployments"]
    needed: Any = item["ray_actor_options"]["num_cpus"]
    per_pod = int(cpus // needed)
    assert per_pod * group["maxReplicas"] >= item["autoscaling_config"]["max_replicas"]
    assert per_pod * group["minReplicas"] >= item["autoscaling_config"]["min_replicas"]


def test_the_head_runs_no_replica() -> None:
    cluster = one("RayService", "iris-api")["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["autoscalerOptions"]["version"] == "v2"
