"""The Serve application: two engines, the teacher pipeline and the router, deployed side by side."""

from __future__ import annotations

import logging
import time
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from supertiny.config import validate
from supertiny.errors import ConfigError
from supertiny.serving.answers import Answers
from supertiny.serving.arm import Arm
from supertiny.serving.arms import ServeLlm, StudentArm, TeacherArm, TeacherPipeline
from supertiny.serving.config import RoutingConfig, ServeConfig
from supertiny.serving.keys import Guard, read_keys
from supertiny.serving.models import engine
from supertiny.serving.probes import Probes
from supertiny.serving.router import router_app
from supertiny.serving.serve_meter import ServeMeter
from supertiny.serving.sources import model_paths
from supertiny.serving.tracing import tracer_of
from supertiny.tasks.base import load_task

_UNBOUNDED = 100_000
"""The router and the pipeline only wait for the engines, whose own limits refuse what is too much."""
_NOT_ON_THE_HEAD = {"supertiny/group": "!head"}
"""What takes no CPU would be put there, too, and what was asked of it waits for as long as the head is lost. A head without this label,
the only node of a laptop, takes it."""
log = logging.getLogger(__name__)


@serve.ingress()
class Router:
    """The HTTP ingress over the arms' handles. Serve's `user_config` is a `RoutingConfig`, taken up without a restart."""

    def __init__(self, config: ServeConfig, teacher: DeploymentHandle[Any], student: DeploymentHandle[Any] | None) -> None:
        task = load_task(config.task)
        arms: dict[str, Arm] = {"teacher": TeacherArm(teacher, None if config.teacher_endpoint else "teacher-engine")}
        if student is not None:
            wait = config.student_arm.queue_seconds
            adapted = {f"student:{name}": StudentArm(ServeLlm(student, wait, name), task.tools) for name in config.student_arm.adapters}
            arms = {"student": StudentArm(ServeLlm(student, wait), task.tools), **arms, **adapted}
        tracer = tracer_of(config.trace_endpoint)
        self._answers = Answers(arms, task, config.routing, config.limits, ServeMeter(), tracer, may_answer=config.student_is_promoted)
        keys = read_keys(config.api_keys) if config.api_keys is not None else None
        self._guard = Guard(keys, config.router_replicas, time.monotonic)
        cold = config.teacher_endpoint is None and config.teacher_arm.min_replicas == 0
        self._probes = Probes({name: arm for name, arm in arms.items() if not (cold and name == "teacher")})

    async def __serve_build_asgi_app__(self) -> FastAPI:
        return router_app(self._answers, self._guard, self._probes)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve at the start and whenever `user_config` changes. Rules that cannot hold here change nothing, and are logged:
        raising would make Serve replace a router that works."""
        try:
            self._answers.switch(validate(RoutingConfig, user_config, "user_config of router"))
        except ConfigError as error:
            log.error("the routing stays as it is: %s", error)


def build_app(config: ServeConfig) -> serve.Application:
    """The application, ready for `serve.run`; the models are checked before anything is deployed."""
    paths = model_paths(config)
    drain_seconds = config.limits.seconds + 5
    student_engine = None
    if config.student is not None:
        student_engine = engine("student", paths.get("student"), config.student_arm, drain_seconds, config.trace_endpoint)
    teacher_engine = config.teacher_endpoint or engine(
        "teacher", paths.get("teacher"), config.teacher_arm, drain_seconds, config.trace_endpoint
    )
    pipeline = _light(TeacherPipeline, "teacher", config, drain_seconds).bind(config.task, teacher_engine, config.teacher_arm.queue_seconds)
    router = _light(Router, "router", config, drain_seconds).options(user_config=config.routing.model_dump())
    app: serve.Application = router.bind(config, pipeline, student_engine)
    return app


def _light(deployed: type, name: str, config: ServeConfig, drain_seconds: float) -> Any:
    """A deployment that only waits: no logical CPU of its own."""
    deploy: Any = serve.deployment
    return deploy(
        deployed,
        name=name,
        num_replicas=config.router_replicas,
        max_replicas_per_node=config.routers_per_node,
        max_ongoing_requests=_UNBOUNDED,
        graceful_shutdown_timeout_s=drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_timeout_s=30,
        max_constructor_retry_count=3,  # a wrong file of keys stays wrong
        ray_actor_options={"num_cpus": 0, "label_selector": _NOT_ON_THE_HEAD},
    )
