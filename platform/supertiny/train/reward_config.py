"""Settings of what reinforcement learning rewards."""

from __future__ import annotations

from pydantic import Field, model_validator

from supertiny.config import Config
from supertiny.llm.config import EndpointConfig, RubricConfig


class RewardWeights(Config):
    """The rewards of a completion, each in [-1, 1], and their weights; the reward is their weighted mean."""

    verifier: float | None = Field(None, gt=0)
    """The verifier's graded score: for the shipped tasks, format, overlap of calls and similarity of arguments in one."""
    accepted: float | None = Field(None, gt=0)
    """1 where the verifier accepts, else -1."""
    format: float | None = Field(None, gt=0)
    """Whether the calls can be parsed, and the tools take them."""
    calls: float | None = Field(None, gt=0)
    """Overlap of the called names with the reference's."""
    arguments: float | None = Field(None, gt=0)
    """Similarity of the arguments of same-named calls."""
    length: float | None = Field(None, gt=0)
    """Falls with the tokens beyond those of the reference; not alone."""
    judge: float | None = Field(None, gt=0)
    """What a model says of it by a rubric; `judge` says which."""

    def weights(self) -> dict[str, float]:
        """The rewards that are used; the weights add up to 1."""
        given = {name: weight for name, weight in self if weight is not None}
        return {name: weight / sum(given.values()) for name, weight in given.items()}

    @model_validator(mode="after")
    def _some_reward(self) -> RewardWeights:
        if not set(self.weights()) - {"length"}:
            raise ValueError("no reward says what is right; give verifier, accepted, calls, arguments or judge a weight")
        return self


class RewardJudgeConfig(RubricConfig):
    """A model that grades the student's completions, all of them, while it is trained; its scale is spread over [-1, 1]."""

    endpoint: EndpointConfig
    """Where it answers. Every worker asks for its own completions, each different one once a step."""
