"""The Serve application: two engines, the teacher pipeline and the router, deployed side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from supertiny.records import Tool
from supertiny.serving.arms import ServeLlm, StudentArm, TeacherArm, TeacherPipeline
from supertiny.serving.config import ServeConfig
from supertiny.serving.models import engine
from supertiny.serving.router import Arm, Routes, router_app
from supertiny.serving.sources import model_paths
from supertiny.tasks.base import load_task

_UNBOUNDED = 100_000
"""The router and the pipeline only wait for the engines, whose own limits refuse what is too much."""


@serve.ingress()
class Router:
    """The HTTP ingress over the arms' handles."""

    def __init__(
        self, config: ServeConfig, tools: Sequence[Tool], teacher: DeploymentHandle[Any], student: DeploymentHandle[Any] | None
    ) -> None:
        arms: dict[str, Arm] = {"teacher": TeacherArm(teacher)}
        if student is not None:
            arms = {"student": StudentArm(ServeLlm(student), tools), **arms}
        self._routes = Routes(arms, tools, config.traffic_fraction, config.salt, config.limits)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        return router_app(self._routes)


def build_app(config: ServeConfig) -> serve.Application:
    """The application, ready for `serve.run`; the models are checked before anything is deployed."""
    paths = model_paths(config)
    tools = load_task(config.task).tools
    drain_seconds = config.limits.seconds + 5
    teacher_engine = engine("teacher", str(paths["teacher"]), config.teacher_arm, drain_seconds)
    student_engine = engine("student", str(paths["student"]), config.student_arm, drain_seconds) if "student" in paths else None
    pipeline = _light(TeacherPipeline, "teacher", config.router_replicas, drain_seconds).bind(config.task, teacher_engine)
    app: serve.Application = _light(Router, "router", config.router_replicas, drain_seconds).bind(config, tools, pipeline, student_engine)
    return app


def _light(deployed: type, name: str, num_replicas: int, drain_seconds: float) -> Any:
    """A deployment that only waits: no logical CPU of its own."""
    deploy: Any = serve.deployment
    return deploy(
        deployed,
        name=name,
        num_replicas=num_replicas,
        max_ongoing_requests=_UNBOUNDED,
        graceful_shutdown_timeout_s=drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_timeout_s=30,
        ray_actor_options={"num_cpus": 0},
    )
