"""The serving application's arguments: what `serve/*.yaml` and `serve/app.py:build` take."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from supertiny.config import Config, TaskConfig
from supertiny.llm.config import EndpointConfig, ScriptedConfig


class SpeculationConfig(Config):
    """Tokens guessed ahead from text that was seen, and checked by the model in one step; what comes out stays the model's."""

    method: Literal["ngram", "suffix"]
    """`ngram` looks in the request itself; `suffix` in earlier answers too, and needs the package arctic-inference."""
    num_tokens: int = Field(4, ge=1, le=32)
    """Most tokens that are guessed in a step."""
    longest_match: int = Field(4, ge=1, le=64)
    """Most tokens before the guess that are looked up (vLLM's `prompt_lookup_max`, and the depth of the suffix tree)."""


class ArmConfig(Config):
    """One arm's vLLM engine and how many replicas of it there are; both arms have the same defaults, so that they compare."""

    min_replicas: int = Field(1, ge=0)
    """Replicas that are always there; 0 for the teacher alone, which then starts when it is asked and is left out of the probes."""
    max_replicas: int = Field(1, ge=1)
    """Replicas under load."""
    target_ongoing_requests: float = Field(16, gt=0)
    """Requests a replica that autoscaling aims at."""
    max_ongoing_requests: int = Field(64, ge=1)
    """Requests that a replica takes at a time; more wait in the queue."""
    max_queued_requests: int = Field(32, ge=1)
    """Requests that wait at one caller of the arm; more are refused with 503 and `Retry-After`. The longer the queues of all callers
    together, against `max_ongoing_requests` of all replicas, the longer the admitted wait in an overload."""
    queue_seconds: float | None = Field(None, gt=0)
    """Longest wait there; refused after it as by a full queue, so that no admitted request is slow. None waits until the request's
    deadline, which a cold start needs."""
    upscale_seconds: float = Field(30, ge=0)
    """Load has to last this long before replicas are added (Serve's `upscale_delay_s`); it is also the look-back of the average."""
    downscale_seconds: float = Field(600, ge=0)
    """Idleness has to last this long before replicas are taken away (Serve's `downscale_delay_s`)."""
    threads: int = Field(1, ge=1)
    """OpenMP threads and logical CPUs of a replica."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest prompt and completion together, tokens; None takes the model's own limit."""
    max_num_seqs: int = Field(64, ge=1)
    """Sequences in one step of the engine."""
    max_num_batched_tokens: int | None = Field(None, ge=16)
    """Tokens of one step of the engine, prompts included; None takes vLLM's, 2,048 on a CPU."""
    chunked_prefill: bool = True
    """Cut prompts up that do not fit into a step, so that answers under way go on beside them."""
    prefix_caching: bool = True
    """Keep the keys and values of prompts for later ones that start alike, such as with the task's tools."""
    block_size: int | None = Field(32, ge=16, multiple_of=16)
    """Tokens of one block of keys and values; only whole ones are kept for later prompts. None takes vLLM's, 128 on a CPU."""
    speculation: SpeculationConfig | None = None
    """Guess tokens ahead; None draws them one by one."""
    adapters: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")], str] = Field(default_factory=dict)
    """LoRA adapters of the student by name, folders as PEFT writes them; each is a model `student:<name>`, and `auto` asks for none."""
    kv_cache_gib: int = Field(1, ge=1)
    """Memory for keys and values, GiB a replica (vLLM's VLLM_CPU_KVCACHE_SPACE, on a GPU its `kv_cache_memory_bytes`)."""
    num_gpus: float = Field(0, ge=0, le=1)
    """GPUs of a replica: a fraction puts several side by side on one, 0 runs on the CPU."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of the GPU's memory that vLLM may take; needed where replicas share one, and at most `num_gpus` there."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Nodes that its replicas may be on: those with all of these labels (Ray's `label_selector`)."""
    scripted: ScriptedConfig | None = None
    """A fake engine in place of the model, to measure what is around one; the model is not opened."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is under min_replicas {self.min_replicas}")
        if self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError(
                f"target_ongoing_requests {self.target_ongoing_requests:g} is over max_ongoing_requests {self.max_ongoing_requests}: "
                "autoscaling would never add a replica"
            )
        if self.scripted is not None and self.adapters:
            raise ValueError("adapters: a scripted engine has no model to adapt")
        return self

    @model_validator(mode="after")
    def _shares_of_a_gpu(self) -> Self:
        share = self.gpu_memory_utilization
        if share is not None and self.num_gpus == 0:
            raise ValueError("gpu_memory_utilization is for GPUs and num_gpus is 0; set kv_cache_gib alone")
        if 0 < self.num_gpus < 1 and (share is None or share > self.num_gpus):
            raise ValueError(f"replicas share a GPU (num_gpus {self.num_gpus:g}): set gpu_memory_utilization to at most that")
        return self


class LimitsConfig(Config):
    """What one request may ask for; anything over it is refused with 400 or 413."""

    body_bytes: int = Field(262_144, ge=1024)
    """Longest request body."""
    messages: int = Field(64, ge=1)
    """Messages a conversation."""
    schema_bytes: int = Field(65_536, ge=256)
    """Longest `tools`, as JSON."""
    completion_tokens: int = Field(256, ge=1)
    """Largest `max_tokens`, and its value where the request has none."""
    seconds: float = Field(60, gt=0)
    """Deadline of a request, all retries and both arms of a cascade included; 504 after it. It also bounds how long a stopping replica
    waits for its requests."""
    in_flight: int = Field(512, ge=1)
    """Requests that one router has in hand; more are refused with 503 and `Retry-After`."""


class ShadowConfig(Config):
    """How many of the requests to `auto` the other arm gets a copy of, in mode `shadow`."""

    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the answered requests that are copied."""
    in_flight: int = Field(8, ge=1)
    """Copies that one router has under way; more are dropped."""
    busy_requests: int = Field(32, ge=1)
    """Requests in a router's hand from which on no copy is made: under load the copies go first."""


class CascadeConfig(Config):
    """When the student's answer is good enough, in mode `cascade`."""

    threshold: float = Field(0.0, ge=0, le=1)
    """Lowest confidence, the probability of the whole completion, with which the student's answer stands; `serving.calibrate` finds it.
    0 leaves the decision to the verifier."""


class RoutingConfig(Config):
    """Who answers `auto`: what Serve's `user_config` of the deployment `router` may change without a restart."""

    mode: Literal["split", "shadow", "cascade"] = "split"
    """`split` shares sessions out; `shadow` also sends the other arm a copy; `cascade` asks the student first and the teacher in doubt."""
    traffic_fraction: float = Field(0.5, ge=0, le=1)
    """Share of the sessions asking for `auto` that the student answers, in `split` and `shadow`; needs a promoted student."""
    salt: str = "supertiny"
    """Decides, with the session, who is in the treatment; another salt draws the sessions afresh."""
    shadow: ShadowConfig = ShadowConfig()
    """Of mode `shadow`."""
    cascade: CascadeConfig = CascadeConfig()
    """Of mode `cascade`."""
    log_prompts: bool = False
    """Write every conversation and its answer into the routers' logs; otherwise nothing of what users say is written anywhere."""

    @property
    def student_answers(self) -> bool:
        """Whether clients may get the student's answers to `auto`."""
        return self.mode == "cascade" or self.traffic_fraction > 0


class ServeConfig(RoutingConfig):
    """The student beside its teacher pipeline, behind one router."""

    run_root: str = "~/supertiny/runs/demo"
    """Folder of the run whose artifacts are served."""
    task: TaskConfig = TaskConfig()
    """The task: its tools and its teacher pipeline."""
    student: str | None = "student@production"
    """Alias (`name@stage`) that `jobs/promote.py` moves, or a model artifact; None serves the teacher alone."""
    student_release: str | None = None
    """Name of the release that the alias has to name, such as `w8a8-1f2e3d4c`. Serve builds a deployed application anew only where its
    arguments change, so writing the newest here is how `serve deploy` takes a promotion up. None serves what the alias names then."""
    teacher: str = "package://supertiny.tasks.assistant/models/teacher"
    """Model artifact that the teacher pipeline calls."""
    teacher_endpoint: EndpointConfig | None = None
    """An OpenAI-compatible endpoint that the teacher pipeline calls in place of a model of ours."""
    api_keys: str | None = Field(None, pattern=r"^(env:[A-Z][A-Z0-9_]*|.*\.toml)$")
    """Who may ask: a `.toml` file of hashed keys, or `env:NAME` of a variable that holds its text, where the routers run; None lets
    everyone in who reaches the port."""
    trace_endpoint: str | None = Field(None, pattern=r"^https?://")
    """OpenTelemetry collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`; None traces nothing."""
    student_arm: ArmConfig = ArmConfig()
    """The treatment's engine and its replicas."""
    teacher_arm: ArmConfig = ArmConfig()
    """The control's engine and its replicas."""
    router_replicas: int = Field(1, ge=1)
    """Replicas of the HTTP router, and of the teacher pipeline."""
    routers_per_node: int | None = Field(None, ge=1)
    """Most of these replicas on one node, so that its loss takes no more; those that find no node wait for one. None leaves it to Ray,
    which after a loss has put the only two on one."""
    limits: LimitsConfig = LimitsConfig()
    """Caps on one request."""

    @model_validator(mode="after")
    def _traffic_only_to_a_promoted_student(self) -> Self:
        if self.student_answers and not self.student_is_promoted:
            raise ValueError(
                f"traffic_fraction {self.traffic_fraction:g} needs a promoted student (an alias such as student@production), got "
                f'student = {self.student!r} in mode {self.mode}; promote one, or set mode = "split" and traffic_fraction = 0'
            )
        if self.mode == "shadow" and self.student is None:
            raise ValueError('mode shadow needs a student; name one, promoted or not, or set mode = "split"')
        return self

    @model_validator(mode="after")
    def _only_an_alias_has_releases(self) -> Self:
        if self.student_release is not None and not self.student_is_promoted:
            raise ValueError(f"student_release: only an alias such as student@production names releases, got student = {self.student!r}")
        return self

    @model_validator(mode="after")
    def _the_student_is_always_there(self) -> Self:
        if self.student is not None and self.student_arm.min_replicas == 0:
            raise ValueError("student_arm.min_replicas: 0 would let a cold start, about a minute, stand before an answer; at least 1")
        return self

    @model_validator(mode="after")
    def _adapters_are_a_students(self) -> Self:
        if self.teacher_arm.adapters:
            raise ValueError("teacher_arm.adapters: the teacher pipeline asks for none; merge it into the model")
        if self.student is None and self.student_arm.adapters:
            raise ValueError("student_arm.adapters: no student is served that they could adapt")
        return self

    @property
    def student_is_promoted(self) -> bool:
        """Whether the student is an alias, which `jobs/promote.py` moves only after a gate."""
        return self.student is not None and "@" in self.student

    @property
    def routing(self) -> RoutingConfig:
        """The part that may change without a restart."""
        return RoutingConfig(**{name: getattr(self, name) for name in RoutingConfig.model_fields})

    def control_alone(self) -> ServeConfig:
        """The teacher pipeline without a student: it answers all of `auto`."""
        return self.model_copy(update={"student": None, "student_release": None, "mode": "split", "traffic_fraction": 0.0})

    @property
    def num_cpus(self) -> int:
        """Logical CPUs that the application needs before it autoscales."""
        return sum(arm.min_replicas * arm.threads for arm in self._engines)

    @property
    def num_gpus(self) -> float:
        """GPUs that it needs before it autoscales."""
        return sum(arm.min_replicas * arm.num_gpus for arm in self._engines)

    @property
    def _engines(self) -> list[ArmConfig]:
        student = [self.student_arm] if self.student is not None else []
        return student if self.teacher_endpoint else [*student, self.teacher_arm]
