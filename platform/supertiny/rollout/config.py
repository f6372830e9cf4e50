"""Settings of the rollout stage."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveInt, field_validator, model_validator

from supertiny.config import Config, StageConfig
from supertiny.llm.config import EndpointConfig, EngineConfig, RubricConfig, ScriptedConfig, drop_conduct


class LayoutConfig(Config):
    """How the work is spread over a cluster; none of it decides what comes out."""

    num_engines: tuple[PositiveInt, PositiveInt] = (1, 1)
    """Actors that hold one engine each: a number, or the fewest and the most, `[1, 4]`. Between them Ray Data's actor pool starts engines
    while more blocks wait than are worked on, as far as the cluster has room, and ends idle ones."""
    cpus_per_engine: float = Field(1.0, ge=0)
    """Logical CPUs of one node that an engine's actor takes; Ray Data's own tasks need one more CPU of the cluster."""
    gpus_per_engine: float = Field(0.0, ge=0)
    """GPUs of one node that an engine's actor takes: one a worker, or a fraction of one that engines share."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Nodes that the rollout may use: those with all of these labels (Ray's `label_selector`), `{"supertiny/group" = "teacher"}`."""
    block_rows: int = Field(64, gt=0)
    """Rollouts of one block: what is written, and never redone, at once."""
    blocks_in_flight: int = Field(5, gt=0)
    """Blocks that one engine works on at a time; times `block_rows`, keep it above the engine's `max_num_seqs`."""
    row_timeout_seconds: float = Field(120.0, gt=0)
    """A teacher pipeline that takes longer for one rollout is stopped, and the row rejected as `timed_out`; the waits for its model and the
    tries that an endpoint did not answer count, so keep it above a few times `endpoint.timeout_seconds`."""
    blocking_timeout_seconds: float = Field(30.0, gt=0)
    """A pipeline or verifier whose synchronous code lets no other one run for longer is killed, and the row rejected as `timed_out`; the
    rows beside it begin again."""
    no_progress_seconds: float = Field(600.0, gt=0)
    """No block written for this long ends the job with NoProgress."""
    log_every_seconds: float = Field(5.0, gt=0)
    """Between two progress lines."""

    @field_validator("num_engines", mode="before")
    @classmethod
    def _a_number_is_both(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _can_be_had(self) -> LayoutConfig:
        fewest, most = self.num_engines
        if fewest > most:
            raise ValueError(f"num_engines [{fewest}, {most}]: the fewest come first")
        if self.gpus_per_engine > 1 and not self.gpus_per_engine.is_integer():
            raise ValueError(f"gpus_per_engine {self.gpus_per_engine:g}: a fraction of one GPU, or whole ones")
        return self


class JudgeConfig(RubricConfig):
    """A model that grades, by a rubric, what the verifier accepted; without a score a row is rejected as `no_score`."""

    min_score: float = Field(4.0, ge=1)
    """Smallest mean score that is accepted; below, the row is rejected as `low_score`."""
    endpoint: EndpointConfig | None = None
    """An endpoint that judges; None asks the model that the teacher pipeline calls."""

    @model_validator(mode="after")
    def _can_tell(self) -> JudgeConfig:
        if self.min_score > self.max_score:
            raise ValueError(f"min_score {self.min_score:g} is over max_score {self.max_score}: nothing would be accepted")
        return self


class LikelihoodConfig(Config):
    """Which accepted completions of a prompt the student finds likely enough."""

    student: str
    """The model that is to learn from the rollouts: an artifact's name in the run, a path, or `package://module/folder`. Its tokenizer has
    to be the teacher's."""
    engine: EngineConfig = EngineConfig()
    """Its engine; as many of them as of the teacher's, each in a like place, once the teacher's are gone."""
    keep_per_prompt: int | None = Field(None, gt=0)
    """Only so many of a prompt's accepted texts, the likeliest ones; None keeps all."""
    min_logprob: float | None = Field(None, le=0)
    """Smallest mean log-probability of a completion's tokens under the student, nats a token; None asks for none."""

    @model_validator(mode="after")
    def _rejects_some(self) -> LikelihoodConfig:
        if self.keep_per_prompt is None and self.min_logprob is None:
            raise ValueError("neither keep_per_prompt nor min_logprob: the student would be asked for nothing; set one of them")
        return self


class FiltersConfig(Config):
    """What a rollout has to pass besides the task's verifier, layer by layer in this order."""

    check_schema: bool = True
    """Reject as `schema` an accepted completion whose calls its tools' JSON schemas refuse, whatever the verifier says. One whose calls
    cannot be read is `malformed` in any case."""
    judge: JudgeConfig | None = None
    """Ask a model about what the verifier accepted."""
    min_agreement: float | None = Field(None, gt=0, le=1)
    """Smallest share of a prompt's `group_size` completions that must be accepted and make the same calls, else the whole group is
    rejected as `no_agreement`; None asks for none. Where nobody knows the right calls, the commonest ones become the prompt's
    reference either way, and completions that make others are rejected as `minority`."""
    min_pass_rate: float | None = Field(None, gt=0, le=1)
    """Smallest share of a prompt's completions accepted so far: below, the others are rejected as `seldom_solved`. A prompt that is
    never solved has no accepted completion and so falls out by itself."""
    max_pass_rate: float | None = Field(None, gt=0, lt=1)
    """Largest such share: a prompt above it is rejected as `often_solved`. 0.99 drops those that are always solved."""
    likelihood: LikelihoodConfig | None = None
    """Ask the student how likely it finds what is accepted, and reject the others as `unlikely`; `not_scored` is what it cannot take in."""
    drop_duplicates: bool = False
    """Reject a completion whose text an earlier one of its prompt already has. A nearly greedy teacher loses most rows by it."""
    max_similarity: float | None = Field(None, gt=0, lt=1)
    """Reject as `near_duplicate` what makes the same calls as an accepted completion of another prompt whose text is more similar than this
    (Jaccard similarity of 5-character shingles, system messages left out). 0.8 takes texts for the same that differ in a word or two of
    ten; prompts that differ in what they ask for make different calls and stay."""

    @model_validator(mode="after")
    def _some_pass(self) -> FiltersConfig:
        if self.min_pass_rate is not None and self.max_pass_rate is not None and self.min_pass_rate > self.max_pass_rate:
            raise ValueError(
                f"min_pass_rate {self.min_pass_rate:g} is over max_pass_rate {self.max_pass_rate:g}: nothing would be accepted"
            )
        return self


class RatesConfig(Config):
    """What one rollout takes on average."""

    engine_seconds: float = Field(gt=0)
    """Busy seconds of one engine a rollout, many in flight: `engine_seconds` of a ledger over its `rollouts`."""
    prompt_tokens: float = Field(0.0, ge=0)
    """Of all calls, the filters' included."""
    completion_tokens: float = Field(0.0, ge=0)
    """Likewise."""
    endpoint_usd: float = Field(0.0, ge=0)
    """Dollars for the tokens of endpoints; left out, `endpoint.price` for the tokens above."""


class CostConfig(Config):
    """What the rollouts may cost; none of it decides what comes out."""

    machine: str = "m7i-large"
    """The machine that the job reserves, by its name in the price table."""
    num_machines: float = Field(1.0, gt=0)
    """How many of them; the engines share them equally."""
    prices: str | None = None
    """Price table (TOML); None takes the checkout's `cluster/prices.toml`."""
    budget_usd: float | None = Field(None, gt=0)
    """Dollars by reservation and for endpoints' tokens, over all attempts, after which the job stops, or which it stops before if its first
    32 prompts show that they will not do. Run again with a larger one, it goes on."""
    rates: RatesConfig | None = None
    """What `--dry-run` estimates with; None takes the rates of the last ledger of this name in `run_root`."""


class RolloutConfig(StageConfig):
    """Run the teacher pipeline over a task's prompts and keep what the verifier accepts."""

    name: str = "rollouts"
    """Name of the artifact that this stage publishes under `run_root`."""
    teacher: str = "package://supertiny.tasks.assistant/models/teacher"
    """The model that the teacher pipeline calls."""
    engine: EngineConfig = EngineConfig()
    """Its engine."""
    endpoint: EndpointConfig | None = None
    """An endpoint that the pipeline calls instead of `teacher`; its rollouts have no teacher log-probabilities."""
    scripted: ScriptedConfig | None = None
    """A fake engine instead of `teacher`, to measure everything around an engine."""
    split: str = "train"
    """Which of the task's prompts."""
    limit: int | None = Field(None, gt=0)
    """Only this many prompts, the first ones; None takes all."""
    prompts_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Hash over these prompts and the task's tools, which they must have; None takes them as they are and writes their hash down. With
    other prompts the rollouts are made again."""
    group_size: int = Field(2, gt=0)
    """Completions of one prompt."""
    filters: FiltersConfig = FiltersConfig()
    """What a completion must pass besides the task's verifier."""
    layout: LayoutConfig = LayoutConfig()
    """How the work is spread over the cluster."""
    cost: CostConfig = CostConfig()
    """Prices and the budget."""

    @model_validator(mode="after")
    def _one_teacher(self) -> RolloutConfig:
        instead = [name for name, given in (("an endpoint", self.endpoint), ("a scripted engine", self.scripted)) if given is not None]
        idle = {"teacher", "engine"} & self.model_fields_set
        if instead and idle:
            raise ValueError(f"with {instead[0]}, {' and '.join(sorted(idle))} would have no effect; leave it out")
        if len(instead) > 1:
            raise ValueError("an endpoint and a scripted engine: give the one that shall answer")
        return self

    @model_validator(mode="after")
    def _devices_for_every_worker(self) -> RolloutConfig:
        cpus, gpus = self.layout.cpus_per_engine, self.layout.gpus_per_engine
        for place, engine in self.engines().items():
            workers, share = engine.num_workers, engine.gpu_memory_utilization
            if gpus == 0 and workers > max(1, cpus):
                raise ValueError(f"{place} has {workers} workers on layout.cpus_per_engine {cpus:g}; give it {workers}, or GPUs")
            if gpus > 0 and (workers > max(1, gpus) or (place == "engine" and workers < gpus)):  # a student's may be smaller than its place
                raise ValueError(f"{place} has {workers} workers and layout.gpus_per_engine is {gpus:g}: a worker is one GPU")
            if 0 < gpus < 1 and (share is None or share > gpus):
                raise ValueError(
                    f"engines share a GPU (layout.gpus_per_engine {gpus:g}): set {place}.gpu_memory_utilization to at most that"
                )
        return self

    @model_validator(mode="after")
    def _time_to_try_again(self) -> RolloutConfig:
        row = self.layout.row_timeout_seconds
        for place, call in ((place, endpoint.timeout_seconds) for place, endpoint in self.endpoints().items()):
            if row <= 2 * call:
                raise ValueError(
                    f"layout.row_timeout_seconds {row:g} has no room for two tries of {place}.timeout_seconds {call:g}: "
                    "an endpoint that is gone would look like rows that are slow"
                )
        return self

    @model_validator(mode="after")
    def _groups_that_can_pass(self) -> RolloutConfig:
        most = self.filters.max_pass_rate
        if most is not None and most * self.group_size < 1:
            raise ValueError(
                f"filters.max_pass_rate {most:g} with group_size {self.group_size} keeps nothing: one accepted completion is over it"
            )
        return self

    @model_validator(mode="after")
    def _a_budget_that_can_be_kept(self) -> RolloutConfig:
        unpriced = self.endpoints_without_price()
        if self.cost.budget_usd is not None and unpriced:
            raise ValueError(
                f"cost.budget_usd cannot be kept: nobody knows what {' and '.join(unpriced)} costs; set its price, 0 if nothing"
            )
        return self

    def engines(self) -> dict[str, EngineConfig]:
        """The engines that are built, by where they stand in the config."""
        likelihood, asked = self.filters.likelihood, self.endpoint is None and self.scripted is None
        found = {"engine": self.engine if asked else None, "filters.likelihood.engine": likelihood.engine if likelihood else None}
        return {place: engine for place, engine in found.items() if engine is not None}

    def endpoints(self) -> dict[str, EndpointConfig]:
        """The endpoints that are asked, by where they stand in the config."""
        judge = self.filters.judge
        found = {"endpoint": self.endpoint, "filters.judge.endpoint": judge.endpoint if judge else None}
        return {place: endpoint for place, endpoint in found.items() if endpoint is not None}

    def endpoints_without_price(self) -> list[str]:
        """Where the config has endpoints whose tokens' price it does not give."""
        return [place for place, endpoint in self.endpoints().items() if endpoint.price is None]

    def settings(self) -> dict[str, Any]:
        """The fields that decide the result: layout, cost and how models are run do not, so that a run may go on with others."""
        values = super().settings()
        likelihood, judge = values["filters"]["likelihood"] or {}, values["filters"]["judge"] or {}
        for section in (values["engine"], likelihood.get("engine"), values["endpoint"], judge.get("endpoint")):
            drop_conduct(section)
        return {key: value for key, value in values.items() if key not in ("layout", "cost")}
