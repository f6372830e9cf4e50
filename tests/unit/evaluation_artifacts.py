"""Evaluations and models for tests, published through the same code as real ones."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from short_task import ShortTask

from supertiny.artifacts import Artifact, make
from supertiny.config import StageConfig
from supertiny.evaluate.config import EvaluateConfig, GateConfig, System
from supertiny.evaluate.gate import gate
from supertiny.evaluate.judge import PREDICTIONS, Judged, write_predictions
from supertiny.evaluate.measure import Answer, Measurement
from supertiny.evaluate.suites import summarize
from supertiny.fresh import set_aside_stale
from supertiny.records import Parity, Prompt, Usage


class FakeModelConfig(StageConfig):
    """Decides a fake model's contents."""

    contents: str = "weights"


class NumberedTask(ShortTask):
    """The prompts that `rows` are of."""

    def prompts(self, split: str) -> list[Prompt]:
        """The same ones for every split; the right answer is no call."""
        prompts = super().prompts(split)
        return [prompt.model_copy(update={"id": f"prompt-{at:05d}", "reference": []}) for at, prompt in enumerate(prompts)]


def publish_model(run_root: Path, name: str, contents: str = "weights", parameters: int = 3_400_000, size: int = 6_800_000) -> Artifact:
    """A model artifact with one file in it."""

    def build(folder: Path) -> dict[str, Any]:
        (folder / "model.safetensors").write_text(contents)
        return {"parameters": parameters, "bytes": size}

    return make(FakeModelConfig(run_root=str(run_root), name=name, contents=contents), "model", {}, build)


def make_again(model: Artifact, contents: str) -> Artifact:
    """The model removed and made with the same settings but to other weights, as training can."""
    shutil.rmtree(model.path)

    def build(folder: Path) -> dict[str, Any]:
        (folder / "model.safetensors").write_text(contents)
        return model.manifest.metrics

    name, settings = model.manifest.name, model.manifest.config
    return make(FakeModelConfig(run_root=str(model.path.parent), name=name, contents=settings["contents"]), "model", {}, build)


def row(index: int, right: bool, part: str = "in_scope", tokens: int = 20) -> Judged:
    """One judged prompt."""
    return Judged(
        prompt_id=f"prompt-{index:05d}",
        slice=part,
        exact_match=right,
        score=1.0 if right else -0.5,
        reason="" if right else "wrong_arguments",
        call_name_right=True,
        argument_f1=(1.0 if right else 0.5) if part == "in_scope" else None,
        prompt_tokens=40,
        cached_tokens=0,
        completion_tokens=tokens,
        model_calls=1,
        text="given",
        reference="right",
    )


def rows(right: Sequence[bool], tokens: int = 20) -> list[Judged]:
    """Judged prompts, every fifth out of scope."""
    return [row(index, one, "out_of_scope" if index % 5 == 4 else "in_scope", tokens) for index, one in enumerate(right)]


def publish_evaluation(
    run_root: Path, model: Artifact, judged: Sequence[Judged], system: System = "student", seconds: Mapping[str, float] | None = None
) -> Artifact:
    """An evaluation artifact of a model, named `eval-<model>`."""
    times = {"each": 0.01, "p50": 0.05, "p95": 0.08, **(seconds or {})}
    config = EvaluateConfig(run_root=str(run_root), model=model.manifest.name, system=system, num_prompts=len(judged), latency_prompts=2)
    set_aside_stale(config, {"model": model})
    measured = Measurement(
        answers=[Answer(prompt_id=one.prompt_id, text=one.text, usage=Usage()) for one in judged],
        answer_seconds=times["each"] * len(judged),
        latencies=[times["p50"]] * 90 + [times["p95"]] * 10,
        engine_seconds=2.0,
    )

    def build(folder: Path) -> dict[str, Any]:
        write_predictions(folder / PREDICTIONS, judged)
        return summarize(config, model, list(judged), measured).model_dump(mode="json")

    return make(config, "evaluation", {"model": model}, build)


def publish_gate(run_root: Path, candidate: str, num_right: int, name: str = "gate") -> Artifact:
    """The candidate's model; its gate compares `num_right` right prompts of 1,000 with 970."""
    teacher = publish_model(run_root, "teacher", contents="teacher")
    publish_evaluation(run_root, teacher, rows([index < 970 for index in range(1000)]), system="teacher")
    model = publish_model(run_root, candidate, contents=candidate)
    publish_evaluation(run_root, model, rows([index < num_right for index in range(1000)]))
    gate(GateConfig(run_root=str(run_root), name=name, candidate=f"eval-{candidate}"))
    return model


def publish_proof(run_root: Path, model: Artifact, problems: list[str], name: str = "parity", **found: Any) -> None:
    """What a parity proof of a model came to."""
    passed: dict[str, Any] = {"kl_nats": 2.5e-6, "greedy_agreement": 1, "positions": 640, "tokenizer_sha256": "0", "template_sha256": "0"}
    proof = Parity(verdict="fail" if problems else "pass", problems=problems, **{**passed, **found})
    config = StageConfig(name=name, run_root=str(run_root))
    set_aside_stale(config, {"model": model})
    make(config, "parity", {"model": model}, lambda _: proof.model_dump(mode="json"))
