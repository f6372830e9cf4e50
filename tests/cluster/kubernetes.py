"""The manifests of cluster/kuberay as Kubernetes would get them, and what says whether it would take them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from manifests import CLUSTER, ROOT

Manifest = dict[str, Any]
KUBERAY = CLUSTER / "kuberay"
OVERLAYS = [f"{size}/{what}" for size in ("kind", "gpu") for what in ("cluster", "service", "pipeline")]
SCHEMAS = ROOT.parent / "shared" / "schemas"
OWN = {"RayCluster", "RayJob", "RayService"}
"""KubeRay's kinds."""
KUEUE = {"ResourceFlavor", "ClusterQueue", "LocalQueue"}
VERSIONS = {**dict.fromkeys(OWN, "v1"), **dict.fromkeys(KUEUE, "v1beta1")}
"""Kinds that Kubernetes does not know by itself."""


def kustomize_command() -> list[str]:
    """`kustomize build`, by itself or in kubectl; skips the test where there is neither."""
    if path := shutil.which("kustomize"):
        return [path, "build"]
    if path := shutil.which("kubectl"):
        return [path, "kustomize"]
    pytest.skip("neither kustomize nor kubectl is installed: the overlays of cluster/kuberay are NOT checked")


@cache
def built(overlay: str) -> list[Manifest]:
    """What `kubectl apply -k` of an overlay applies."""
    ran = subprocess.run([*kustomize_command(), str(KUBERAY / "overlays" / overlay)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return list(yaml.safe_load_all(ran.stdout))


def one(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    """The only manifest of a kind, or of a kind and name."""
    (found,) = [each for each in manifests if each["kind"] == kind and name in ("", each["metadata"]["name"])]
    return found


def stage_jobs() -> dict[str, Manifest]:
    """The RayJobs that `kubectl create -f` takes, by stage."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((KUBERAY / "jobs").glob("*.yaml"))}


def cluster_spec(manifest: Manifest) -> Manifest:
    """The nodes of a RayCluster, or those that a RayService or RayJob brings along."""
    key = {"RayCluster": None, "RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}[manifest["kind"]]
    spec: Manifest = manifest["spec"] if key is None else manifest["spec"][key]
    return spec


def pod_specs(manifest: Manifest) -> list[Manifest]:
    """Every pod that a manifest makes."""
    if manifest["kind"] == "StatefulSet":
        return [manifest["spec"]["template"]["spec"]]
    if manifest["kind"] not in OWN:
        return []
    nodes = cluster_spec(manifest)
    return [group["template"]["spec"] for group in (nodes["headGroupSpec"], *nodes["workerGroupSpecs"])]


@cache
def custom_schema(kind: str) -> Manifest:
    """KubeRay's or Kueue's own schema of a kind, in which a key that it does not know is an error; skips the test where there is none."""
    variable, default = ("KUBERAY_SCHEMAS", SCHEMAS / "kuberay-1.7.0") if kind in OWN else ("KUEUE_SCHEMAS", SCHEMAS / "kueue")
    path = Path(os.environ.get(variable, default)) / f"{kind.lower()}_{VERSIONS[kind]}.json"
    if not path.exists():
        pytest.skip(f"no schema at {path}: {kind} is NOT CHECKED; name the folder in {variable}")
    schema: Manifest = _closed(json.loads(path.read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


@cache
def validator_of(kind: str) -> Any:
    """What holds a manifest against the schema of its kind, which is itself checked once: it is large."""
    schema = custom_schema(kind)
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    return validator(schema)


def check(manifest: Manifest) -> None:
    """Raise where the schema of KubeRay, of Kueue or of Kubernetes itself refuses a manifest."""
    if (kind := manifest["kind"]) in VERSIONS:
        assert manifest["apiVersion"].endswith(f"/{VERSIONS[kind]}")
        validator_of(kind).validate(manifest)
        return
    kubernetes_validate.validate(manifest, "1.33", strict=True)


def _closed(schema: Any) -> Any:
    """A schema that refuses unknown keys wherever it names the known ones."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed
