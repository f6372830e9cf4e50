"""Boards and alerts: every metric is one that somebody exports, every alert has its runbook."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import ray
import yaml
from kubernetes import built, cluster_spec, one
from manifests import CLUSTER, ROOT
from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
from ray.dashboard.consts import DASHBOARD_METRIC_PORT
from ray.serve._private.common import DeploymentStatus

from supertiny.rollout.metrics import COUNTERS, GAUGES, ROW_SECONDS
from supertiny.train.metrics import STEPS_LEFT

OBSERVABILITY = CLUSTER / "observability"
BOARDS = sorted(OBSERVABILITY.glob("*.json"))
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RUNBOOKS = ROOT / "docs" / "operations.md"
METRIC = re.compile(r"\b(?:ray|autoscaler|supertiny)[_:][\w:]+")
LABELS = {"ray_train_run_name", "ray_train_controller_state"}
"""Labels that begin like metrics, one of them like its own metric."""


def queries() -> dict[str, str]:
    """Every query, by where it stands."""
    found = {f"alerts.yaml {rule.get('alert') or rule['record']}": rule["expr"] for rule in RULES}
    for path in BOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            found |= {f"{path.name} {panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return found


def metrics_of(query: str) -> set[str]:
    """The metrics in a query, without labels and text."""
    without_labels = re.sub(r"\{[^}]*\}|\b(?:by|on) \([^)]*\)", "", query)
    return set(METRIC.findall(without_labels))


def base(metric: str) -> str:
    """A metric's name as it was given to Ray: without Ray's prefix and what Prometheus puts behind it."""
    return re.sub(r"_(bucket|count|sum)$", "", metric.removeprefix("ray_"))


@cache
def ray_s_names() -> set[str]:
    """Every word of Ray's own dashboards, exporters and gauges."""
    package = Path(ray.__file__).parent
    places = (
        "serve/_private",
        "dashboard/modules/metrics",
        "dashboard/modules/reporter",
        "autoscaler/_private",
        "train/v2/_internal/metrics",
    )
    texts = [path.read_text() for place in places for path in (package / place).rglob("*.py")]
    return set(re.findall(r"\w+", " ".join(texts)))


@cache
def serving_names() -> set[str]:
    """What serving exports, read from its source."""
    texts = [path.read_text() for path in (ROOT / "platform" / "supertiny" / "serving").glob("*.py")]
    return {f"supertiny_serving_{word.value}" for text in texts for word in ast.walk(ast.parse(text)) if _is_text(word)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", [place for place, query in queries().items() if "supertiny_serving_" not in query])
def test_somebody_exports_every_metric_that_is_asked_for(place: str) -> None:
    ours = {ROW_SECONDS, STEPS_LEFT, *GAUGES, *(f"{name}_total" for name in COUNTERS)}
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for metric in metrics_of(queries()[place]):
        if metric.startswith("ray_supertiny_"):
            assert base(metric) in ours
        elif metric.startswith("supertiny:"):
            assert metric in recorded
        else:
            names = ray_s_names()
            plain = base(metric).removesuffix("_total").removeprefix("autoscaler_")
            assert metric in names or f"{metric.removesuffix('_bucket')}" in names or plain in names, metric


@pytest.mark.parametrize("place", [place for place, query in queries().items() if "supertiny_serving_" in query])
def test_serving_exports_every_metric_of_its_arms_that_is_asked_for(place: str) -> None:
    assert {base(metric) for metric in metrics_of(queries()[place])} <= serving_names()


@pytest.mark.parametrize("place", queries())
def test_a_query_s_brackets_are_in_pairs(place: str) -> None:
    open_ones = []
    for mark in re.sub(r'"[^"]*"', "", queries()[place]):
        if mark in "([{":
            open_ones.append(mark)
        elif mark in ")]}":
            assert open_ones.pop() + mark in ("()", "[]", "{}")
    assert open_ones == []


@pytest.mark.parametrize(("what", "file"), [("rules", "alerts.yaml"), ("config", "prometheus.yaml")])
def test_prometheus_itself_takes_a_file(what: str, file: str) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip(f"promtool is not installed: whether Prometheus takes {file} is NOT CHECKED")
    checked = subprocess.run([promtool, "check", what, file], cwd=OBSERVABILITY, capture_output=True, text=True, check=False, timeout=60)
    if "field kubernetes_sd_configs not found" in checked.stderr:
        pytest.skip(f"{promtool} was built without Kubernetes, as Debian's is: {file} is NOT CHECKED")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_what_is_wrong_how_urgent_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"]["summary"]
    document, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert ROOT / document == RUNBOOKS
    assert anchor in {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", RUNBOOKS.read_text(), re.MULTILINE)}


def test_there_is_an_alert_for_each_thing_that_may_not_go_unseen() -> None:
    assert {
        "RolloutStuck",
        "TrainingStuck",
        "TrainingHangs",
        "ServingErrorsFast",
        "ServingErrorsSlow",
        "ReplicasNotReady",
        "RolloutBudget",
    } <= {alert["alert"] for alert in ALERTS}


def expression(alert: str) -> str:
    """The query of an alert."""
    (found,) = [each["expr"] for each in ALERTS if each["alert"] == alert]
    return str(found)


def test_a_rollout_that_never_began_is_stuck_too() -> None:
    """A counter that has counted nothing is not exported, so a query for one finds nothing before the first finished block."""
    assert {base(metric) for metric in metrics_of(expression("RolloutStuck"))} == {"supertiny_rollout_rows_left"} <= GAUGES.keys()


def test_a_head_is_missed_while_its_workers_go_on() -> None:
    (label,) = re.findall(r'\{(\w+)="head"\}', expression("HeadGone"))
    reporter = Path(ray.__file__).parent / "dashboard" / "modules" / "reporter" / "reporter_agent.py"
    assert f'"{label}": ray_node_type' in reporter.read_text()


@pytest.mark.parametrize(
    ("alert", "named"),
    [("ReplicasNotReady", {"DEPLOY_FAILED", "UNHEALTHY"}), ("ReplicasPending", {"DEPLOY_FAILED", "UNHEALTHY", "UPDATING", "UPSCALING"})],
)
def test_replicas_are_told_from_ready_ones_by_serve_s_own_numbers(alert: str, named: set[str]) -> None:
    bound = int(expression(alert).rpartition("< ")[2])
    assert {status.value for status in DeploymentStatus if status.to_numeric() < bound} == named


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_board_has_an_id_panels_of_their_own_and_a_place_for_each(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"].startswith("supertiny-")
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)) > 3
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(places) == len(set(places))
    assert all(panel["description"] for panel in board["panels"])


def test_prometheus_finds_nodes_where_ray_writes_them_down_and_reads_the_alerts() -> None:
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yaml").read_text())
    assert [(OBSERVABILITY / name).exists() for name in config["rule_files"]] == [True]
    (found,) = config["scrape_configs"][0]["file_sd_configs"]
    assert found["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]


def test_prometheus_reads_the_autoscaler_s_metrics_on_kubernetes_too() -> None:
    ports = cluster_spec(one(built("gpu/cluster"), "RayCluster"))["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yaml").read_text())
    (kept,) = [rule["regex"] for rule in config["scrape_configs"][1]["relabel_configs"] if "port_name" in rule["source_labels"][0]]
    read = {port["containerPort"] for port in ports if re.fullmatch(kept, port["name"])}
    rules = one(built("gpu/cluster"), "NetworkPolicy", "ray")["spec"]["ingress"]
    (let_in,) = [rule["ports"] for rule in rules if "monitoring" in str(rule["from"])]
    assert read == {port["port"] for port in let_in} == {8080, AUTOSCALER_METRIC_PORT, DASHBOARD_METRIC_PORT}


def test_the_head_may_ask_the_grafana_and_the_prometheus_that_it_is_told_of() -> None:
    container = cluster_spec(one(built("gpu/cluster"), "RayCluster"))["headGroupSpec"]["template"]["spec"]["containers"][0]
    told = {
        each["name"]: urlsplit(each["value"]) for each in container["env"] if each["name"] in ("RAY_GRAFANA_HOST", "RAY_PROMETHEUS_HOST")
    }
    assert len(told) == 2
    for url in told.values():
        namespace = (url.hostname or "").rpartition(".")[2]
        there = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
        rules = one(built("gpu/cluster"), "NetworkPolicy", "ray")["spec"]["egress"]
        assert [rule for rule in rules if there in rule.get("to", []) and {"port": url.port} in rule["ports"]]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
