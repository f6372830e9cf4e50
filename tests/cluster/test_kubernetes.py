"""cluster/kuberay: KubeRay and Kubernetes take it, and it says what the operations guide promises."""

from __future__ import annotations

import copy
import re
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes import (
    KUBERAY,
    KUEUE,
    OVERLAYS,
    OWN,
    VERSIONS,
    Manifest,
    built,
    check,
    cluster_spec,
    one,
    pod_specs,
    stage_jobs,
    validator_of,
)
from manifests import ROOT
from ray._private import ray_constants
from ray.serve.schema import ServeDeploySchema

from supertiny.config import validate
from supertiny.serving.config import ServeConfig

SIZES = ("kind", "gpu")
WHAT = {"cluster": "RayCluster", "service": "RayService", "pipeline": "RayJob"}
LONGEST_SECONDS = ServeConfig(traffic_fraction=0, student=None).limits.seconds
"""Of a generation."""
HOOK_START_SECONDS = 3
"""Until a hook has announced anything, at most."""
every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def ends_of_pods(overlay: str) -> list[tuple[str, float, float, float]]:
    """Of each group, the seconds that its hook announces, that Ray's own drain takes after SIGTERM, and that Kubernetes gives in all."""
    (nodes,) = [cluster_spec(manifest) for manifest in built(overlay) if manifest["kind"] in OWN]
    ends = []
    for group in (nodes["headGroupSpec"], *nodes["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        told = {each["name"]: each["value"] for each in container["env"]}
        drain = told.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S)
        hook = container["lifecycle"]["preStop"]["exec"]["command"][-1] if "lifecycle" in container else 0
        ends.append((group.get("groupName", "head"), float(hook), float(drain), pod["terminationGracePeriodSeconds"]))
    return ends


@every_overlay
def test_kuberay_takes_its_kinds_of_an_overlay(overlay: str) -> None:
    (manifest,) = [each for each in built(overlay) if each["kind"] in OWN]
    check(manifest)


@every_overlay
def test_kubernetes_takes_its_own_kinds_of_an_overlay(overlay: str) -> None:
    kinds = {manifest["kind"] for manifest in built(overlay) if manifest["kind"] not in VERSIONS}
    assert kinds == {"Namespace", "Service", "StatefulSet", "PersistentVolumeClaim", "PodDisruptionBudget", "NetworkPolicy"}
    for manifest in built(overlay):
        if manifest["kind"] in kinds:
            check(manifest)


@pytest.mark.parametrize("overlay", [each for each in OVERLAYS if each.startswith("gpu/")])
@pytest.mark.parametrize("kind", sorted(KUEUE))
def test_kueue_takes_its_kinds_of_an_overlay(overlay: str, kind: str) -> None:
    check(one(built(overlay), kind))


@pytest.mark.parametrize("stage", stage_jobs())
def test_kuberay_takes_a_stage_s_job(stage: str) -> None:
    check(stage_jobs()[stage])


@pytest.mark.parametrize("kind", sorted(VERSIONS))
def test_a_misspelt_key_would_be_refused(kind: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match="autoscalling"):
        validator_of(kind).validate({"kind": kind, "spec": {"autoscalling": True}})


def test_every_stage_has_a_job_that_starts_it() -> None:
    scripts = {path.stem for path in (ROOT / "jobs").glob("*.py")} - {"pipeline", "doctor", "pretrain"}
    started = [re.match(r"python /opt/supertiny/jobs/(\w+)\.py ", job["spec"]["entrypoint"]) for job in stage_jobs().values()]
    assert {each[1] for each in started if each} == scripts
    assert {stage: job["metadata"]["generateName"] for stage, job in stage_jobs().items()} == {stage: f"{stage}-" for stage in stage_jobs()}


@pytest.mark.parametrize("configs", ["demo", "qwen/cluster"])
def test_every_job_s_config_is_there_for_both_sizes(configs: str) -> None:
    entrypoints = [job["spec"]["entrypoint"] for job in stage_jobs().values()]
    entrypoints.append(yaml.safe_load((KUBERAY / "components" / "pipeline" / "rayjob.yaml").read_text())["spec"]["entrypoint"])
    names = [entrypoint.partition("$SUPERTINY_CONFIGS/")[2].split()[0] for entrypoint in entrypoints if "$SUPERTINY_CONFIGS" in entrypoint]
    assert names
    assert [name for name in names if not (ROOT / "jobs" / "configs" / configs / name).exists()] == []


@every_overlay
def test_every_node_of_an_overlay_knows_its_configs_and_its_run(overlay: str) -> None:
    """The overlays' patches name a variable by its place in the list."""
    configs, run = {"kind": ("demo", "demo"), "gpu": ("qwen/cluster", "qwen")}[overlay.partition("/")[0]]
    expected = {
        "SUPERTINY_CONFIGS": f"/opt/supertiny/jobs/configs/{configs}",
        "SUPERTINY_RUN_ROOT": f"/shared/runs/{run}",
        "RAY_PROMETHEUS_HOST": "http://prometheus.monitoring:9090",
    }
    (nodes,) = [cluster_spec(manifest) for manifest in built(overlay) if manifest["kind"] in OWN]
    for group in (nodes["headGroupSpec"], *nodes["workerGroupSpecs"]):
        told = {each["name"]: each["value"] for each in group["template"]["spec"]["containers"][0]["env"]}
        assert expected.items() <= told.items()


@every_overlay
def test_no_pod_runs_as_root_or_can_become_it_and_each_is_limited(overlay: str) -> None:
    for manifest in built(overlay):
        for pod in pod_specs(manifest):
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in pod["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


@every_overlay
def test_one_token_opens_every_cluster(overlay: str) -> None:
    for manifest in built(overlay):
        if manifest["kind"] in OWN:
            assert cluster_spec(manifest)["authOptions"] == {"mode": "token", "secretName": "supertiny-token"}


@pytest.mark.parametrize("size", SIZES)
def test_a_job_s_variables_are_read_where_they_are_set(size: str) -> None:
    """KubeRay's submitting pod would read them itself, without the head's environment; over HTTP the line goes to the head as it is."""
    jobs = [*stage_jobs().values(), one(built(f"{size}/pipeline"), "RayJob")]
    head = cluster_spec(one(built(f"{size}/cluster"), "RayCluster"))["headGroupSpec"]["template"]["spec"]["containers"][0]
    for job in jobs:
        assert job["spec"]["submissionMode"] == "HTTPMode"
        used = set(re.findall(r"\$(\w+)", job["spec"]["entrypoint"]))
        assert "SUPERTINY_RUN_ROOT" in used
        assert used <= {variable["name"] for variable in head["env"]}


@every_overlay
def test_the_head_has_no_work_and_its_state_lies_outside_it(overlay: str) -> None:
    (nodes,) = [cluster_spec(manifest) for manifest in built(overlay) if manifest["kind"] in OWN]
    assert nodes["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert nodes["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    assert nodes["enableInTreeAutoscaling"] is True
    assert nodes["autoscalerOptions"]["version"] == "v2"


@every_overlay
def test_workers_come_from_nothing_and_go_back_to_it(overlay: str) -> None:
    (nodes,) = [cluster_spec(manifest) for manifest in built(overlay) if manifest["kind"] in OWN]
    for group in nodes["workerGroupSpecs"]:
        assert (group["minReplicas"], group["replicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
        assert group["labels"]["supertiny/group"] == group["groupName"]


@every_overlay
def test_a_request_has_the_longest_generation_s_time_before_its_pod_ends(overlay: str) -> None:
    """What the hook announces, and then Ray's own drain after SIGTERM; neither training nor a head answers requests."""
    for group, hook, drain, _ in ends_of_pods(overlay):
        assert group in ("train", "head") or hook + drain >= LONGEST_SECONDS


@every_overlay
def test_a_pod_is_given_longer_to_end_than_its_hook_and_ray_s_drain_take(overlay: str) -> None:
    for _, hook, drain, grace in ends_of_pods(overlay):
        assert grace > max(hook + HOOK_START_SECONDS + drain, LONGEST_SECONDS + 5)


@every_overlay
def test_a_worker_tells_ray_that_it_ends_and_has_longer_than_that(overlay: str) -> None:
    (nodes,) = [cluster_spec(manifest) for manifest in built(overlay) if manifest["kind"] in OWN]
    for group in nodes["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        *command, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command == ["python", "-m", "supertiny.drain", "--seconds"]
        assert int(seconds) < pod["terminationGracePeriodSeconds"]


@every_overlay
def test_the_object_store_of_every_pod_fits_into_its_dev_shm(overlay: str) -> None:
    """What Ray takes by itself; where it does not fit, objects go to the disk and the doctor says so."""
    (nodes,) = [cluster_spec(manifest) for manifest in built(overlay) if manifest["kind"] in OWN]
    for group in (nodes["headGroupSpec"], *nodes["workerGroupSpecs"]):
        (shm,) = [each["emptyDir"] for each in group["template"]["spec"]["volumes"] if each["name"] == "shm"]
        size, memory = _amount(shm["sizeLimit"]), _amount(_limits(group)["memory"])
        most = max(ray_constants.REQUIRE_SHM_SIZE_THRESHOLD, 0.95 * size)
        assert min(ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION * memory, most) <= size


@every_overlay
def test_the_autoscaler_writes_its_log_where_the_head_s_dashboard_reads_it(overlay: str) -> None:
    """KubeRay mounts `ray-logs` at /tmp/ray of the container that it adds, and makes it where the pod has no volume of that name."""
    (nodes,) = [cluster_spec(manifest) for manifest in built(overlay) if manifest["kind"] in OWN]
    pod = nodes["headGroupSpec"]["template"]["spec"]
    assert [each["name"] for each in pod["containers"][0]["volumeMounts"] if each["mountPath"] == "/tmp/ray"] == ["ray-logs"]
    assert "ray-logs" in [each["name"] for each in pod["volumes"]]
    assert "volumeMounts" not in nodes["autoscalerOptions"]


@every_overlay
def test_the_ray_of_every_node_is_the_locked_one(overlay: str) -> None:
    (locked,) = [line.partition("==")[2] for line in (ROOT / "requirements" / "cpu.lock").read_text().splitlines() if line[:5] == "ray=="]
    assert {cluster_spec(manifest)["rayVersion"] for manifest in built(overlay) if manifest["kind"] in OWN} == {locked}


@pytest.mark.parametrize("size", SIZES)
def test_the_service_serves_what_serve_ab_yaml_says_and_ray_serve_takes_it(size: str) -> None:
    config = yaml.safe_load(one(built(f"{size}/service"), "RayService")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    plain = yaml.safe_load((ROOT / "serve" / "ab.yaml").read_text())
    for ours, theirs in zip(config["applications"], plain["applications"], strict=True):
        assert {**_but_its_place(ours)} == {**_but_its_place(theirs)}
        assert validate(ServeConfig, ours["args"], "serveConfigV2").run_root.startswith("/shared/")


def test_no_node_has_all_routers_of_the_service() -> None:
    service = one(built("gpu/service"), "RayService")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    config = validate(ServeConfig, application["args"], "serveConfigV2")
    workers = sum(group["maxReplicas"] for group in cluster_spec(service)["workerGroupSpecs"])
    assert config.routers_per_node is not None
    assert config.routers_per_node < config.router_replicas <= workers


@pytest.mark.parametrize("size", SIZES)
def test_the_service_serves_what_the_jobs_of_its_size_write(size: str) -> None:
    service = one(built(f"{size}/service"), "RayService")
    run_root = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]["run_root"]
    for manifest in (service, one(built(f"{size}/cluster"), "RayCluster"), one(built(f"{size}/pipeline"), "RayJob")):
        container = cluster_spec(manifest)["headGroupSpec"]["template"]["spec"]["containers"][0]
        assert [each["value"] for each in container["env"] if each["name"] == "SUPERTINY_RUN_ROOT"] == [run_root]


def test_every_replica_of_the_service_has_its_gpu() -> None:
    service = one(built("gpu/service"), "RayService")
    config = validate(ServeConfig, yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"], "serveConfigV2")
    for arm in (config.student_arm, config.teacher_arm):
        (group,) = [each for each in cluster_spec(service)["workerGroupSpecs"] if arm.labels.items() <= each["labels"].items()]
        limits = _limits(group)
        a_node = min(int(limits["nvidia.com/gpu"]) // arm.num_gpus, int(limits["cpu"]) // arm.threads)
        assert arm.num_gpus > 0
        assert arm.max_replicas <= a_node * group["maxReplicas"]
        assert group["template"]["spec"]["containers"][0]["image"].endswith(":gpu")


def test_a_new_revision_of_the_service_comes_in_steps_and_never_takes_double_the_gpus() -> None:
    upgrade = one(built("gpu/service"), "RayService")["spec"]["upgradeStrategy"]
    assert upgrade["type"] == "NewClusterWithIncrementalUpgrade"
    options = upgrade["clusterUpgradeOptions"]
    assert options["stepSizePercent"] <= options["maxSurgePercent"] < 100


@pytest.mark.parametrize("size", SIZES)
def test_service_and_pipeline_have_the_standing_cluster_s_nodes(size: str) -> None:
    nodes = _nobody_s(cluster_spec(one(built(f"{size}/cluster"), "RayCluster")))
    assert _nobody_s(cluster_spec(one(built(f"{size}/service"), "RayService"))) == nodes
    assert _nobody_s(cluster_spec(one(built(f"{size}/pipeline"), "RayJob"))) == nodes
    assert [each for each in built(f"{size}/service") if each["kind"] == "RayCluster"] == []


@pytest.mark.parametrize("size", SIZES)
def test_no_two_of_cluster_service_and_pipeline_have_one_head_s_service(size: str) -> None:
    """KubeRay makes it of the name, and whoever comes second would turn the other one's workers to its own head."""
    names = [one(built(f"{size}/{what}"), kind)["metadata"]["name"] for what, kind in WHAT.items()]
    assert len(set(names)) == len(names)


def test_clusters_and_pipelines_wait_in_kueue_s_queue() -> None:
    queue = one(built("gpu/cluster"), "LocalQueue")["metadata"]["name"]
    for manifest in (one(built("gpu/cluster"), "RayCluster"), one(built("gpu/pipeline"), "RayJob")):
        assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue
        assert manifest["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"


@pytest.mark.parametrize(("resource", "spare"), [("cpu", 0.2), ("memory", 0.2), ("nvidia.com/gpu", 0)])
def test_the_queue_has_room_for_all_groups_at_their_most_and_for_two_heads(resource: str, spare: float) -> None:
    nodes = cluster_spec(one(built("gpu/cluster"), "RayCluster"))
    pods = [(group["maxReplicas"], _limits(group)) for group in nodes["workerGroupSpecs"]]
    pods += [(2, _limits(nodes["headGroupSpec"])), (2, nodes["autoscalerOptions"]["resources"]["limits"])]
    most = sum(number * _amount(limits.get(resource, "0")) for number, limits in pods)
    (covered,) = one(built("gpu/cluster"), "ClusterQueue")["spec"]["resourceGroups"]
    (quota,) = [_amount(each["nominalQuota"]) for each in covered["flavors"][0]["resources"] if each["name"] == resource]
    assert most <= quota <= (1 + spare) * most


@every_overlay
def test_only_named_traffic_comes_in_and_goes_out(overlay: str) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in built(overlay) if each["kind"] == "NetworkPolicy"}
    assert policies["nothing-else"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for rule in policies["ray"]["ingress"]:
        assert rule["from"]  # a rule without is for everybody
    (submit,) = [rule for rule in policies["ray"]["ingress"] if {"port": 8265} in rule.get("ports", [])]
    assert submit["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}}}]


def test_the_gateway_of_an_upgrade_reaches_the_served_endpoint_and_nobody_else_does() -> None:
    service = one(built("gpu/service"), "RayService")["metadata"]["name"]
    policies = {each["metadata"]["name"]: each["spec"] for each in built("gpu/service") if each["kind"] == "NetworkPolicy"}
    pods = {"matchLabels": {"gateway.networking.k8s.io/gateway-name": f"{service}-gateway"}}  # KubeRay's name and Gateway API's label
    assert policies["gateway"]["podSelector"] == pods
    assert policies["ray-from-gateway"]["ingress"] == [{"from": [{"podSelector": pods}], "ports": [{"port": 8000}]}]
    assert all(rule["from"] for rule in policies["gateway"]["ingress"])
    assert {"port": 8000} in [port for rule in policies["gateway"]["egress"] for port in rule["ports"]]


@every_overlay
def test_redis_is_asked_whether_it_answers(overlay: str) -> None:
    (redis,) = one(built(overlay), "StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= redis.keys()


@every_overlay
def test_the_operator_s_own_probes_of_ray_are_left_to_it(overlay: str) -> None:
    """One of ours would replace its own, which asks for the Serve proxy, too."""
    for manifest in built(overlay):
        if manifest["kind"] in OWN:
            for group in (cluster_spec(manifest)["headGroupSpec"], *cluster_spec(manifest)["workerGroupSpecs"]):
                assert not {"readinessProbe", "livenessProbe"} & group["template"]["spec"]["containers"][0].keys()


def test_with_tls_every_cluster_asks_for_it() -> None:
    component = yaml.safe_load((KUBERAY / "components" / "tls" / "kustomization.yaml").read_text())
    (patch,) = [yaml.safe_load(each["patch"]) for each in component["patches"]]
    cluster = one(built("gpu/cluster"), "RayCluster")
    check({**cluster, "spec": {**cluster["spec"], patch[0]["path"].rpartition("/")[2]: patch[0]["value"]}})


def _nobody_s(nodes: Manifest) -> Manifest:
    """Nodes without the label that says whose they are."""
    copied = copy.deepcopy(nodes)
    for group in (copied["headGroupSpec"], *copied["workerGroupSpecs"]):
        del group["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
    return copied


def _but_its_place(application: dict[str, Any]) -> dict[str, Any]:
    """An application without what only says what runs where, and how its log looks."""
    logging = {key: value for key, value in application["logging_config"].items() if key != "encoding"}
    places = {"run_root", "task", "teacher", "student_arm", "teacher_arm", "router_replicas", "routers_per_node"}
    return {
        **application,
        "logging_config": logging,
        "args": {key: value for key, value in application["args"].items() if key not in places},
    }


def _amount(quantity: str) -> float:
    """In bytes, CPUs or GPUs."""
    number, unit = re.fullmatch(r"(\d+)(\D*)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * {"": 1, "m": 1e-3, "Gi": 2**30, "Ti": 2**40}[unit]


def _limits(group: Manifest) -> dict[str, str]:
    limits: dict[str, str] = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return limits
