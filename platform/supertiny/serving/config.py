"""The serving application's arguments: what `serve/*.yaml` and `serve/app.py:build` take."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from supertiny.config import Config, TaskConfig


class ArmConfig(Config):
    """One arm's vLLM engine and how many replicas of it there are; both arms have the same defaults, so that they compare."""

    min_replicas: int = Field(1, ge=1)
    """Replicas that are always there."""
    max_replicas: int = Field(1, ge=1)
    """Replicas under load."""
    target_ongoing_requests: float = Field(16, gt=0)
    """Requests a replica that autoscaling aims at."""
    max_ongoing_requests: int = Field(64, ge=1)
    """Requests that a replica takes at a time; more wait in the queue."""
    max_queued_requests: int = Field(256, ge=1)
    """Requests that wait at one caller of the arm; more are refused with 503 and `Retry-After`."""
    threads: int = Field(1, ge=1)
    """OpenMP threads and logical CPUs of a replica."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest prompt and completion together, tokens; None takes the model's own limit."""
    max_num_seqs: int = Field(64, ge=1)
    """Sequences in one step of the engine."""
    kv_cache_gib: int = Field(1, ge=1)
    """Memory for keys and values, GiB a replica (vLLM's VLLM_CPU_KVCACHE_SPACE)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is under min_replicas {self.min_replicas}")
        if self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError(
                f"target_ongoing_requests {self.target_ongoing_requests:g} is over max_ongoing_requests {self.max_ongoing_requests}: "
                "autoscaling would never add a replica"
            )
        return self


class LimitsConfig(Config):
    """What one request may ask for; anything over it is refused with 400 or 413."""

    body_bytes: int = Field(262_144, ge=1024)
    """Longest request body."""
    messages: int = Field(64, ge=1)
    """Messages a conversation."""
    completion_tokens: int = Field(256, ge=1)
    """Largest `max_tokens`, and its value where the request has none."""
    seconds: float = Field(60, gt=0)
    """Deadline of a request; 504 after it. It also bounds how long a stopping replica waits for its requests."""


class ServeConfig(Config):
    """The student beside its teacher pipeline, behind one router."""

    run_root: str = "~/supertiny/runs/demo"
    """Folder of the run whose artifacts are served."""
    task: TaskConfig = TaskConfig()
    """The task: its tools and its teacher pipeline."""
    student: str | None = "student@production"
    """Alias (`name@stage`) that `jobs/promote.py` moves, or a model artifact; None serves the teacher alone."""
    teacher: str = "package://supertiny.tasks.assistant/models/teacher"
    """Model artifact that the teacher pipeline calls."""
    traffic_fraction: float = Field(0.5, ge=0, le=1)
    """Share of the sessions asking for `auto` that the student answers; needs a promoted student."""
    salt: str = "supertiny"
    """Decides, with the session, who is in the treatment; another salt draws the sessions afresh."""
    student_arm: ArmConfig = ArmConfig()
    """The treatment's engine and its replicas."""
    teacher_arm: ArmConfig = ArmConfig()
    """The control's engine and its replicas."""
    router_replicas: int = Field(1, ge=1)
    """Replicas of the HTTP router, and of the teacher pipeline."""
    limits: LimitsConfig = LimitsConfig()
    """Caps on one request."""

    @model_validator(mode="after")
    def _traffic_only_to_a_promoted_student(self) -> Self:
        if self.traffic_fraction > 0 and (self.student is None or "@" not in self.student):
            raise ValueError(
                f"traffic_fraction {self.traffic_fraction:g} needs a promoted student (an alias such as student@production), got "
                f"student = {self.student!r}; promote one, or set traffic_fraction = 0"
            )
        return self

    def control_alone(self) -> ServeConfig:
        """The teacher pipeline without a student: it answers all of `auto`."""
        return self.model_copy(update={"student": None, "traffic_fraction": 0.0})

    @property
    def num_cpus(self) -> int:
        """Logical CPUs that the application needs before it autoscales."""
        student = self.student_arm.min_replicas * self.student_arm.threads if self.student is not None else 0
        return student + self.teacher_arm.min_replicas * self.teacher_arm.threads
