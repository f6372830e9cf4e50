"""Shadow and cascade over fake arms: who answers, who is asked too, what it costs, and switching without a restart."""

import asyncio

import pytest
from tests.fake_arms import HALL, HELLO, KITCHEN, LIMITS, FakeArm, LightTask, Served

from supertiny.errors import ArmBusy, ConfigError, PromptRefused
from supertiny.records import Prompt
from supertiny.serving.calibrate import Scored, calibrate, held_out
from supertiny.serving.config import RoutingConfig
from supertiny.serving.shadow import compared
from supertiny.tasks.calls import parse

SHADOW, CASCADE = {"mode": "shadow", "traffic_fraction": 0.0}, {"mode": "cascade", "cascade": {"threshold": 0.5}}


def test_a_shadow_asks_the_other_arm_and_the_answer_is_the_first_ones() -> None:
    student = FakeArm(text=KITCHEN)
    router = Served(SHADOW, promoted=False, student=student)
    answer = router.ask()
    assert (answer.headers["x-supertiny-arm"], answer.headers["x-supertiny-assignment"]) == ("teacher", "shadow")
    assert len(student.samplings) == 1
    assert router.meter.counts["shadow same"] == 1
    assert answer.json()["usage"]["total_tokens"] == 39  # the copy is not the client's


def test_a_streamed_answer_is_copied_too() -> None:
    router = Served(SHADOW, student=FakeArm(text=HALL))
    assert "[DONE]" in router.ask(stream=True).text
    assert router.meter.counts["shadow different"] == 1


@pytest.mark.parametrize("arm", [FakeArm(RuntimeError("secret")), FakeArm(seconds=5)], ids=["broken", "slow"])
def test_a_failing_or_slow_copy_is_counted_and_no_client_knows(arm: FakeArm) -> None:
    router = Served(SHADOW, student=arm)
    assert router.ask().status_code == 200
    assert router.meter.counts["shadow failed"] == 1


def test_copies_are_dropped_first_under_load() -> None:
    student = FakeArm()
    router = Served({**SHADOW, "shadow": {"busy_requests": 1}}, student=student)
    router.meter.asked("teacher", 1)
    assert router.ask().status_code == 200
    assert (router.meter.counts["shadow dropped"], student.samplings) == (1, [])


def test_a_copy_too_many_is_dropped_and_not_queued() -> None:
    router = Served({**SHADOW, "shadow": {"in_flight": 1}}, student=FakeArm(seconds=0.1))

    async def two() -> None:
        for _ in range(2):
            await router.client.post("/v1/chat/completions", json={"model": "auto", "messages": HELLO})

    router.run(two())
    assert (router.meter.counts["shadow same"] + router.meter.counts["shadow different"], router.meter.counts["shadow dropped"]) == (1, 1)


def test_a_copy_takes_no_place_from_a_request() -> None:
    router = Served(SHADOW, student=FakeArm(seconds=0.1), limits=LIMITS.model_copy(update={"in_flight": 1}))

    async def two() -> list[int]:
        statuses = []
        for _ in range(2):
            statuses.append((await router.client.post("/v1/chat/completions", json={"model": "auto", "messages": HELLO})).status_code)
            await asyncio.sleep(0.01)  # the first one's copy is under way
        return statuses

    assert router.run(two()) == [200, 200]


def test_named_models_and_refused_requests_are_not_copied() -> None:
    student = FakeArm()
    router = Served(SHADOW, student=student, teacher=FakeArm(PromptRefused("too long")))
    router.ask()
    router.ask(model="teacher")
    assert student.samplings == []


def test_the_tasks_verifier_compares_the_answers() -> None:
    assert compared(LightTask(), HELLO, KITCHEN, f"Sure. {KITCHEN}") == "same"
    assert compared(LightTask(), HELLO, KITCHEN, HALL) == "different"
    assert compared(LightTask(), HELLO, "<tool_call>", HALL) == "incomparable"


def test_a_sure_and_valid_student_keeps_a_cascade() -> None:
    teacher = FakeArm()
    router = Served(CASCADE, student=FakeArm(text=KITCHEN, logprobs=[-0.1, -0.2]), teacher=teacher)
    answer = router.ask()
    assert (answer.headers["x-supertiny-arm"], answer.headers["x-supertiny-assignment"]) == ("student", "cascade")
    assert float(answer.headers["x-supertiny-confidence"]) == pytest.approx(0.740818, abs=1e-6)  # exp(-0.3)
    assert teacher.samplings == []
    assert router.meter.counts["cascade kept"] == 1


@pytest.mark.parametrize(
    ("student", "outcome"),
    [
        (FakeArm(text=KITCHEN, logprobs=[-0.7]), "unsure"),
        (FakeArm(text=KITCHEN), "unsure"),  # no logprobs, no confidence
        (FakeArm(text="<tool_call>", logprobs=[-0.1]), "invalid"),
        (FakeArm(text=KITCHEN.replace("set_light", "rm"), logprobs=[-0.1]), "invalid"),
    ],
)
def test_a_student_in_doubt_gives_way_to_the_teacher_and_both_are_paid_for(student: FakeArm, outcome: str) -> None:
    router = Served(CASCADE, student=student)
    answer = router.ask()
    assert answer.headers["x-supertiny-arm"] == "teacher"
    assert answer.json()["usage"]["total_tokens"] == 2 * 39
    assert router.meter.counts[f"cascade {outcome}"] == 1


@pytest.mark.parametrize(
    ("error", "outcome"), [(PromptRefused("too long"), "refused"), (ArmBusy("full"), "busy"), (RuntimeError("engine"), "failed")]
)
def test_a_student_without_an_answer_costs_nothing_in_a_cascade(error: Exception, outcome: str) -> None:
    router = Served(CASCADE, student=FakeArm(error))
    answer = router.ask()
    assert (answer.headers["x-supertiny-arm"], answer.json()["usage"]["total_tokens"]) == ("teacher", 39)
    assert router.meter.counts[f"cascade {outcome}"] == 1


def test_a_verifier_that_fails_leaves_the_answer_to_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: LightTask, prompt: Prompt, text: str) -> None:
        raise KeyError(text)

    monkeypatch.setattr(LightTask, "verify", broken)
    router = Served(CASCADE, student=FakeArm(text=KITCHEN, logprobs=[-0.1]))
    answer = router.ask()
    assert (answer.headers["x-supertiny-arm"], answer.json()["usage"]["total_tokens"]) == ("teacher", 2 * 39)
    assert router.meter.counts["cascade failed"] == 1


@pytest.mark.parametrize("mode", ["split", "cascade"])
def test_a_stream_says_when_it_began(mode: str) -> None:
    router = Served({"mode": mode, "traffic_fraction": 1.0}, student=FakeArm(text=KITCHEN, logprobs=[-0.1]))
    began: list[str] = []
    router.meter.first_token = lambda arm, seconds: began.append(arm)  # type: ignore[method-assign]
    router.ask()
    assert began == []
    router.ask(stream=True)
    assert began == ["student"]


def test_a_cascade_streams_what_it_decided_on() -> None:
    text = Served(CASCADE, student=FakeArm(text=KITCHEN, logprobs=[-0.1])).ask(stream=True).text
    assert '"tool_calls"' in text
    assert text.endswith("data: [DONE]\n\n")


def test_the_mode_is_switched_without_a_restart() -> None:
    router = Served({"traffic_fraction": 0.0}, student=FakeArm(text=KITCHEN, logprobs=[-0.1]))
    assert router.ask().headers["x-supertiny-assignment"] == "split"
    router.answers.switch(RoutingConfig(**CASCADE))
    assert router.ask().headers["x-supertiny-assignment"] == "cascade"


@pytest.mark.parametrize(("routing", "arms"), [(CASCADE, True), ({"traffic_fraction": 0.1}, True), (SHADOW, False)])
def test_rules_that_cannot_hold_are_refused_and_change_nothing(routing: dict[str, object], arms: bool) -> None:
    router = Served({"traffic_fraction": 0.0}, promoted=False, **({"student": FakeArm()} if arms else {}))
    with pytest.raises(ConfigError, match=r"needs a (promoted )?student"):
        router.answers.switch(RoutingConfig.model_validate(routing))
    assert router.answers.routing.traffic_fraction == 0.0


def scored(*pairs: tuple[float, bool]) -> list[Scored]:
    """Held-out answers."""
    return [Scored(confidence=confidence, correct=correct) for confidence, correct in pairs]


def test_the_threshold_keeps_as_many_as_the_bound_allows() -> None:
    sure, unsure = [(0.9, True)] * 300, [(0.2, False)] * 100
    found = calibrate(scored(*sure, *unsure), max_error_fraction=0.05)
    assert (found.threshold, found.kept_fraction, found.error_fraction) == (0.9, 0.75, 0.0)
    assert found.error_bound == pytest.approx(1 - (0.05 / 20) ** (1 / 300))  # Clopper-Pearson without an error


def test_where_no_threshold_will_do_the_teacher_is_always_asked() -> None:
    found = calibrate(scored(*[(0.9, True)] * 10), max_error_fraction=0.05)  # too few to say
    assert (found.threshold, found.kept_fraction) == (1.0, 0.0)
    assert calibrate(scored(*[(0.9, False)] * 300), max_error_fraction=0.05).kept_fraction == 0.0


def test_equal_confidences_stand_or_fall_together() -> None:
    found = calibrate(scored(*[(0.9, True)] * 200, *[(0.5, True)] * 60, *[(0.5, False)] * 60), max_error_fraction=0.05)
    assert (found.threshold, found.kept_fraction) == (0.9, 200 / 320)


def test_held_out_answers_are_the_students_valid_ones_with_their_confidence() -> None:
    router = Served({"mode": "cascade"}, student=FakeArm(text=KITCHEN, logprobs=[-0.1]))
    right, wrong = (Prompt(id=str(at), messages=HELLO, reference=parse(text)) for at, text in enumerate((KITCHEN, HALL)))
    found = router.run(held_out(router.client, [right, wrong], LightTask()))
    assert [(round(each.confidence, 4), each.correct) for each in found] == [(0.9048, True), (0.9048, False)]
    invalid = Served({"mode": "cascade"}, student=FakeArm(text="<tool_call>", logprobs=[-0.1]))
    assert invalid.run(held_out(invalid.client, [right], LightTask())) == []
