"""`ray up`'s files: Ray itself takes them, and what the jobs ask for exists in their groups."""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from manifests import CLUSTER, VIRTUAL_MACHINES, cluster_config, groups_of
from ray.autoscaler._private.util import prepare_config, validate_config

POOLS = {"data", "teacher", "train", "student", "compress"}
pytestmark = pytest.mark.parametrize("name", VIRTUAL_MACHINES)


def test_ray_takes_the_file(name: str) -> None:
    validate_config(prepare_config(copy.deepcopy(cluster_config(name))))


def test_a_misspelt_key_would_be_refused(name: str) -> None:
    wrong = {**copy.deepcopy(cluster_config(name)), "idle_timeout": 5}
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepare_config(wrong))


def test_the_head_takes_no_work(name: str) -> None:
    config = cluster_config(name)
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}
    assert any("--num-cpus=0" in command for command in config["head_start_ray_commands"])


def test_the_job_server_listens_to_the_head_alone_and_wants_a_token(name: str) -> None:
    config = cluster_config(name)
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]


def test_every_pool_is_there_on_spot_and_as_the_same_machine_on_demand_behind_it(name: str) -> None:
    kinds = cluster_config(name)["available_node_types"]
    assert {kind["labels"]["supertiny/group"] for kind in kinds.values()} == POOLS | {"head"}
    for pool in POOLS:
        spot, fallback = kinds[f"{pool}-spot"], kinds[pool]
        assert spot["resources"] == fallback["resources"]
        assert spot["priority"] > fallback["priority"]
        assert (spot["labels"]["ray.io/market-type"], fallback["labels"]["ray.io/market-type"]) == ("spot", "on-demand")
        assert {**fallback["node_config"], **_spot(name, fallback["node_config"])} == spot["node_config"]


def test_every_machine_says_what_it_boots_from(name: str) -> None:
    """Left out, Ray takes an AMI whose driver is too old for CUDA 13, and Google a kind of disk that its GPU machines refuse."""
    config = cluster_config(name)
    machines = [kind["node_config"] for kind in config["available_node_types"].values()]
    if name == "aws":
        assert [machine for machine in machines if not machine.get("ImageId", "").startswith("ami-")] == []
        return
    disks = [disk["initializeParams"] for machine in machines for disk in machine["disks"]]
    assert len(disks) == len(machines)
    assert {disk.get("diskType") for disk in disks} == {f"zones/{config['provider']['availability_zone']}/diskTypes/pd-balanced"}
    assert all(disk["sourceImage"] for disk in disks)


def test_a_stopped_container_has_time_for_a_checkpoint(name: str) -> None:
    assert "--stop-timeout 120" in cluster_config(name)["docker"]["run_options"]


def test_workers_ask_their_cloud_whether_they_end_and_leave_time_for_it(name: str) -> None:
    (watch,) = [command for command in cluster_config(name)["worker_start_ray_commands"] if "supertiny.drain" in command]
    assert f"--watch {name}" in watch
    assert float(watch.partition("--seconds ")[2].split()[0]) < {"aws": 120, "gcp": 30}[name]  # what each gives


def test_the_images_user_may_write_to_the_shared_file_system_once_it_is_there(name: str) -> None:
    *_, mount, owner = cluster_config(name)["initialization_commands"]
    assert "mount -t nfs4" in mount
    (user,) = set(re.findall(r"^USER (\d+)$", (CLUSTER / "docker" / "Dockerfile").read_text(), re.MULTILINE))
    assert owner == f"sudo chown {user}:{user} /shared"


def test_prometheus_on_the_head_s_machine_sees_where_ray_writes_its_nodes_down(name: str) -> None:
    config = cluster_config(name)
    (job, *_) = yaml.safe_load((CLUSTER / "observability" / "prometheus.yaml").read_text())["scrape_configs"]
    (file,) = job["file_sd_configs"][0]["files"]
    folder = str(Path(file).parent)
    assert f"--volume {folder}:{folder}" in config["docker"]["run_options"]
    (user,) = set(re.findall(r"^USER (\d+)$", (CLUSTER / "docker" / "Dockerfile").read_text(), re.MULTILINE))
    assert f"sudo mkdir -p {folder} && sudo chown {user}:{user} {folder}" in config["initialization_commands"]


def test_nothing_is_kept_running_that_nobody_uses(name: str) -> None:
    config = cluster_config(name)
    assert [kind for kind, each in config["available_node_types"].items() if each["min_workers"]] == []
    assert 0 < config["idle_timeout_minutes"] <= 15


def test_all_groups_together_may_be_as_many_as_the_cluster_or_more(name: str) -> None:
    """Else `max_workers` would have no effect; and no group alone is over it."""
    groups = groups_of(name)
    assert max(group.most for group in groups) <= cluster_config(name)["max_workers"] <= sum(group.most for group in groups)


def test_both_clouds_have_the_same_groups(name: str) -> None:
    described = [
        {(group.name, group.most, group.resources.get("GPU", 0), tuple(sorted(group.labels.items()))) for group in groups_of(each)}
        for each in VIRTUAL_MACHINES
    ]
    assert all(first == second for first, second in pairwise(described))


def _spot(name: str, on_demand: dict[str, object]) -> dict[str, object]:
    """What makes a machine of this cloud a spot one."""
    if name == "aws":
        return {"InstanceMarketOptions": {"MarketType": "spot"}}
    scheduling = dict(on_demand.get("scheduling", {}))  # type: ignore[call-overload]
    return {"scheduling": {**scheduling, "provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"}}
