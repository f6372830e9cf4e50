import asyncio
from pathlib import Path
from typing import Any

import pytest
from evaluation_artifacts import publish_evaluation, publish_model, row, rows

from supertiny.config import load, validate
from supertiny.errors import ConfigError, CorruptArtifact, MissingInput, PromptRefused
from supertiny.evaluate.config import EvaluateConfig, GateConfig
from supertiny.evaluate.judge import choose, judge, latency, read_predictions
from supertiny.evaluate.measure import Answer, answer_all, latencies, make_system
from supertiny.evaluate.schema import EvaluationMetrics
from supertiny.evaluate.suites import evaluate
from supertiny.llm.base import Llm
from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Call, Completion, Message, Prompt, Tool, Usage, Verdict
from supertiny.tasks.calls import matches, parse, render

LIGHTS = [Call(name="set_light", arguments={"room": "kitchen", "power": "on"})]


class EchoTask:
    """Whoever repeats the prompt is right; its teacher asks twice and scores."""

    def __init__(self) -> None:
        self.tools: list[Tool] = []

    def prompts(self, split: str) -> list[Prompt]:
        """Ten of them."""
        return [prompt(index) for index in range(10)]

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        """Two calls, and a score for the logprobs."""
        (first,) = await llm.complete(prompt.messages)
        (second,) = await llm.complete(prompt.messages)
        scored = await llm.score(prompt.messages, second.text)
        return second.model_copy(update={"usage": first.usage + second.usage + scored.usage})

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Right calls, or a reason."""
        right = matches(parse(text), prompt.reference or [])
        return Verdict(accepted=right, score=1 if right else 0, reason="" if right else "wrong")


def prompt(index: int, reference: list[Call] | None = LIGHTS, part: str = "in_scope") -> Prompt:
    return Prompt(id=f"p{index}", messages=[{"role": "user", "content": f"prompt {index}"}], reference=reference, slice=part)


def answer(text: str, refusal: str = "") -> Answer:
    return Answer(prompt_id="p0", text=text, usage=Usage(completion_tokens=7), refusal=refusal)


def test_every_model_is_asked_the_same_prompts_whatever_the_order_of_the_split() -> None:
    prompts = [prompt(index) for index in range(50)]
    chosen = [one.id for one in choose(prompts, 20, "heldout")]
    assert chosen == [one.id for one in choose(prompts[::-1], 20, "heldout")]
    assert chosen[:5] == [one.id for one in choose(prompts, 5, "heldout")]
    assert chosen != [one.id for one in prompts[:20]]


def test_a_prompt_without_a_reference_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 of 3 prompts of the split heldout have no reference"):
        choose([prompt(0), prompt(1), prompt(2, reference=None)], 3, "heldout")


def test_a_repeated_prompt_id_is_refused() -> None:
    with pytest.raises(ConfigError, match="p1 more than once"):
        choose([prompt(0), prompt(1), prompt(1)], 2, "heldout")


def test_a_split_with_too_few_prompts_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_prompts 11: the split heldout has only 10"):
        choose(EchoTask().prompts("heldout"), 11, "heldout")


def test_a_right_call_counts_everywhere() -> None:
    judged = judge(EchoTask(), prompt(0), answer(render(LIGHTS)))
    assert (judged.exact_match, judged.call_name_right, judged.argument_f1, judged.reason) == (True, True, 1.0, "")


def test_a_right_name_with_a_wrong_argument_counts_by_half() -> None:
    given = render([Call(name="set_light", arguments={"room": "kitchen", "power": "off"})])
    judged = judge(EchoTask(), prompt(0), answer(given))
    assert (judged.exact_match, judged.call_name_right, judged.argument_f1, judged.reason) == (False, True, 0.5, "wrong")


def test_no_call_is_the_right_name_only_where_none_is_asked_for() -> None:
    inside = judge(EchoTask(), prompt(0), answer("I can't."))
    outside = judge(EchoTask(), prompt(0, reference=[], part="out_of_scope"), answer("I can't."))
    assert (inside.call_name_right, inside.argument_f1) == (False, 0.0)
    assert (outside.exact_match, outside.call_name_right, outside.argument_f1) == (True, True, None)


def test_a_malformed_answer_is_not_taken_for_no_call() -> None:
    class Strict(EchoTask):
        """A verifier that takes malformed calls for wrong ones."""

        def verify(self, prompt: Prompt, text: str) -> Verdict:
            """Never right."""
            return Verdict(accepted=False, score=-1, reason="malformed")

    judged = judge(Strict(), prompt(0, reference=[]), answer("<tool_call>{"))
    assert not judged.call_name_right


def test_a_refused_prompt_is_a_wrong_answer_and_not_an_error() -> None:
    judged = judge(EchoTask(), prompt(0, reference=[]), answer("", refusal="too long"))
    assert (judged.exact_match, judged.call_name_right, judged.reason, judged.score) == (False, False, "prompt_refused", -1)


def test_answers_keep_the_prompts_order_and_the_limit_of_concurrency() -> None:
    in_flight = most = 0

    async def ask(one: Prompt) -> Completion:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.001 * (10 - int(one.id[1:])))
        in_flight -= 1
        if one.id == "p3":
            raise PromptRefused("too long")
        return Completion(text=one.id)

    answers, seconds = asyncio.run(answer_all(ask, EchoTask().prompts("heldout"), 4, "test"))
    assert [one.prompt_id for one in answers] == [f"p{index}" for index in range(10)]
    assert [one.text for one in answers] == ["p0", "p1", "p2", "", "p4", "p5", "p6", "p7", "p8", "p9"]
    assert answers[3].refusal == "too long"
    assert most == 4
    assert seconds > 0


def test_latency_is_of_one_prompt_at_a_time() -> None:
    ask = make_system("student", EchoTask(), ScriptedLlm(lambda messages: "hm", delay_seconds=0.01), 16)
    seconds = asyncio.run(latencies(ask, EchoTask().prompts("heldout")[:3]))
    assert len(seconds) == 3
    assert all(one >= 0.01 for one in seconds)


def test_the_student_is_one_call_and_the_teacher_all_of_its_pipeline_but_the_scoring() -> None:
    asked: list[str] = []

    def script(messages: list[Message]) -> str:
        asked.append(messages[-1]["content"])
        return "one two three"

    llm = ScriptedLlm(script)
    student = asyncio.run(_ask("student", llm))
    assert (len(asked), student.usage.calls, student.usage.completion_tokens) == (1, 1, 3)
    teacher = asyncio.run(_ask("teacher", llm))
    assert (len(asked), teacher.usage.calls, teacher.usage.completion_tokens) == (3, 2, 6)


async def _ask(system: str, llm: ScriptedLlm) -> Completion:
    return await make_system("teacher" if system == "teacher" else "student", EchoTask(), llm, 16)(prompt(0))


def test_percentiles_are_interpolated() -> None:
    times = latency([float(index) for index in range(101)])
    assert (times.p50, times.p95) == (50.0, 95.0)


def test_predictions_come_back_as_they_were_written(tmp_path: Path) -> None:
    judged = [row(0, True), row(1, False, "out_of_scope")]
    assert read_predictions(publish_evaluation(tmp_path, publish_model(tmp_path, "rl"), judged)) == judged


def test_the_metrics_of_an_evaluation_are_its_rows_counted(tmp_path: Path) -> None:
    judged = rows([index % 4 != 0 for index in range(20)])
    made = publish_evaluation(tmp_path, publish_model(tmp_path, "rl"), judged, seconds={"each": 0.36})
    metrics = EvaluationMetrics.model_validate(made.manifest.metrics)
    assert (metrics.exact_match.value, metrics.exact_match.n) == (0.75, 20)
    assert {name: part.n for name, part in metrics.slices.items()} == {"in_scope": 16, "out_of_scope": 4}
    assert metrics.reasons == {"wrong_arguments": 5}
    assert (metrics.completion_tokens_mean, metrics.tokens.completion) == (20, 400)
    assert metrics.usd_per_thousand_correct == pytest.approx(1000 * 0.36 * 0.1008 / 3600 / 0.75)
    assert (metrics.parameters, metrics.bytes) == (3_400_000, 6_800_000)


def test_an_evaluation_is_named_after_its_model() -> None:
    assert load(EvaluateConfig, None, ["model=distill"]).name == "eval-distill"
    assert load(EvaluateConfig, None, ["model=package://supertiny.tasks.assistant/models/teacher"]).name == "eval-teacher"
    assert load(EvaluateConfig, None, ["model=distill", "name=mine"]).name == "mine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "rl", "num_prompts": 10}, "latency_prompts 100 is over num_prompts 10"),
        ({"model": "rl", "max_tokens": 512}, r"no room for a prompt within engine\.max_model_len 512"),
        ({"model": "rl", "sistem": "teacher"}, "did you mean system"),
        ({"model": "rl", "system": "oracle"}, "system"),
        ({}, "name: required; model: required"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(EvaluateConfig, settings, "test")


def test_a_gate_without_a_margin_is_refused() -> None:
    with pytest.raises(ConfigError, match="margin"):
        validate(GateConfig, {"margin": 0}, "test")


def test_a_missing_model_is_seen_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="distill: nothing at"):
        evaluate(EvaluateConfig(run_root=str(tmp_path), name="eval-distill", model="distill"))


def test_an_unknown_machine_is_seen_before_anything_starts(tmp_path: Path) -> None:
    publish_model(tmp_path, "distill")
    with pytest.raises(ConfigError, match="did you mean h200"):
        evaluate(EvaluateConfig(run_root=str(tmp_path), name="eval-distill", model="distill", machine="h20"))


def test_a_finished_evaluation_is_not_made_again(tmp_path: Path) -> None:
    model = publish_model(tmp_path, "rl")
    made = publish_evaluation(tmp_path, model, rows([True] * 20))
    again = evaluate(EvaluateConfig(run_root=str(tmp_path), name="eval-rl", model="rl", num_prompts=20, latency_prompts=2))
    assert again.manifest == made.manifest


def test_a_model_that_does_not_say_its_size_is_refused(tmp_path: Path) -> None:
    model = publish_model(tmp_path, "rl")
    manifest = model.manifest.model_copy(update={"metrics": {}})
    with pytest.raises(CorruptArtifact, match="no metric 'parameters'"):
        publish_evaluation(tmp_path, type(model)(model.path, manifest), rows([True] * 20))


def test_an_evaluation_pays_for_no_logprobs() -> None:
    class Paid(ScriptedLlm):
        """Notes what is asked of it."""

        asked: list[int]

        async def complete(self, *args: Any, logprobs: int = 0, **others: Any) -> list[Completion]:
            """As scripted."""
            self.asked.append(logprobs)
            return await super().complete(*args, **others)

        async def score(self, *args: Any, **others: Any) -> Completion:
            """Never in an evaluation."""
            raise AssertionError("scored")

    class Scoring(EchoTask):
        """Asks for logprobs of its last answer, as a rollout needs them."""

        async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
            """One call with logprobs, one score."""
            (answer,) = await llm.complete(prompt.messages, logprobs=8)
            await llm.score(prompt.messages, answer.text, logprobs=8)
            return answer

    llm = Paid(lambda messages: "yes")
    llm.asked = []
    assert asyncio.run(make_system("teacher", Scoring(), llm, 16)(prompt(0))).text == "yes"
    assert llm.asked == [0]
