"""The commands of docs/operations.md: the shell does what is meant, Ray knows its own, and names are those of the manifests."""

from __future__ import annotations

import re
import shlex

import click
import pytest
from kubernetes import built, cluster_spec, one
from manifests import ROOT
from ray.scripts.scripts import cli

GUIDE = (ROOT / "docs" / "operations.md").read_text()
BLOCKS = [block.replace("\\\n", " ") for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)]
LINES = [re.sub(r"\s+# .*", "", line) for block in BLOCKS for line in block.splitlines()]
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", GUIDE, flags=re.DOTALL))
OF_RAY = sorted({each.strip() for text in (*LINES, *SPANS) for each in re.findall(r"\bray [a-z][a-z-]+(?: [^|&;)]+)?", text)})


def test_nothing_goes_to_the_background_with_what_the_next_line_waits_for() -> None:
    """`a && b &` runs both there, and a tunnel's ssh that asks for the terminal is stopped there."""
    background = [line for line in LINES if re.search(r"[^&>]&$", line.strip())]
    assert [line for line in background if "&&" in line or "||" in line or "dashboard" in line or "port-forward" in line] == []


@pytest.mark.parametrize("command", OF_RAY)
def test_ray_has_a_command_with_its_options(command: str) -> None:
    words = shlex.split(re.sub(r"<[^>]*>", "X", command))[1:]
    found: click.Command = cli
    while isinstance(found, click.Group):
        found = found.commands[words.pop(0)]
    known = {name for option in found.params for name in option.opts}
    ours = words[: words.index("--")] if "--" in words else words
    assert {word.partition("=")[0] for word in ours if word.startswith("-")} <= known


def test_the_token_and_the_head_are_asked_for_by_the_manifests_names() -> None:
    cluster = one(built("gpu/cluster"), "RayCluster")
    name = cluster["metadata"]["name"]
    secret = cluster_spec(cluster)["authOptions"]["secretName"]
    (made,) = [line for line in LINES if f"create secret generic {secret} " in line]
    (read,) = [line for line in LINES if f"get secret {secret} " in line]
    assert "--from-literal=auth_token=" in made  # KubeRay's key
    assert "{.data.auth_token}" in read
    (tunnel,) = [line for line in LINES if "port-forward" in line]
    assert f"service/{name}-head-svc 8265" in tunnel  # KubeRay's name
    assert {each.split()[2] for each in LINES if each.startswith("kubectl -n ")} == {cluster["metadata"]["namespace"]}


def test_a_pipeline_is_run_again_without_deleting_what_it_works_on() -> None:
    overlay = built("gpu/pipeline")
    assert {"Namespace", "PersistentVolumeClaim", "StatefulSet"} <= {each["kind"] for each in overlay}  # what `delete -k` would take
    assert [line for line in LINES if "kubectl delete" in line] == []
    (again,) = [line for line in LINES if " delete rayjob " in line]
    assert again.split()[-1] == one(overlay, "RayJob")["metadata"]["name"]


def test_a_pod_is_told_that_it_may_fetch_where_it_shall() -> None:
    (fetch,) = [line for line in LINES if " exec " in line and "hf download" in line]
    (container,) = cluster_spec(one(built("gpu/cluster"), "RayCluster"))["headGroupSpec"]["template"]["spec"]["containers"]
    assert f" -c {container['name']} -- env HF_HUB_OFFLINE=0 hf download " in fetch
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]
