"""The weights that did best, and plain model folders out of what training holds."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_rollouts import assistant_tokenizer, gold_rollouts, make_student
from transformers import AutoModelForCausalLM

from supertiny.config import validate
from supertiny.train.config import LoraSettings, RlConfig
from supertiny.train.lora import add_lora
from supertiny.train.plan import DrawPlan
from supertiny.train.prompts import judgeable, render_prompts, write_prompts
from supertiny.train.students import open_tokenizer, save_student
from supertiny.train.validation import Best, greedy_answers, open_validation

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("student"))


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def marked(student: Path, mark: float) -> Any:
    """The student with a number in its last norm to know it by."""
    model = load(student)
    model.model.norm.weight.data.fill_(mark)
    return model


def mark_in(folder: Path) -> float:
    return float(load(folder).model.norm.weight[0].item())


def test_the_best_weights_are_published_of_equals_the_later(student: Path, tmp_path: Path) -> None:
    best = Best(tmp_path / "best")
    for step, fraction in ((0, 0.5), (10, 0.8), (20, 0.8), (30, 0.7)):
        best.offer(marked(student, 1 + step), step, fraction)
    (tmp_path / "out").mkdir()
    assert best.publish(tmp_path / "out") == {"best_step": 20, "validation_exact_match_best": 0.8}
    assert mark_in(tmp_path / "out") == 21


def test_a_restarted_run_knows_its_best_weights_whichever_steps_it_repeats(student: Path, tmp_path: Path) -> None:
    Best(tmp_path).offer(marked(student, 2), 10, 0.9)
    again = Best(tmp_path)
    again.offer(marked(student, 3), 10, 0.4)
    assert (again.step, again.fraction, mark_in(tmp_path / "step-10")) == (10, 0.9, 2)
    again.offer(marked(student, 3), 20, 0.9)
    assert (again.step, mark_in(tmp_path / "step-20"), (tmp_path / "step-10").exists()) == (20, 3, False)


@pytest.mark.usefixtures("alone")
def test_a_student_whose_tokenizer_has_no_padding_is_asked_like_any_other(student: Path, tmp_path: Path) -> None:
    unpadded = shutil.copytree(student, tmp_path / "student")
    settings = json.loads((unpadded / "tokenizer_config.json").read_text())
    (unpadded / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": None}))
    assert open_tokenizer(unpadded).pad_token is None
    assert asked(unpadded, tmp_path) == asked(student, tmp_path)


def asked(student: Path, root: Path) -> float:
    """The fraction of some prompts that a student answers rightly."""
    tokenizer = open_tokenizer(student)
    prompts = write_prompts(root / "prompts", judgeable(render_prompts(gold_rollouts(tokenizer, 6), tokenizer)))
    config = validate(RlConfig, {"validation": {"max_completion_tokens": 4}}, "test")
    plan = DrawPlan(config, student, None, prompts=prompts, validation=prompts, num_steps=1, checkpoints=root / "workers", output=root)
    validation = open_validation(plan)
    assert validation is not None
    return validation.ask(load(student), 0)["validation_exact_match"]


def test_saving_rounds_to_bfloat16_and_leaves_the_model_as_it_is(student: Path, tmp_path: Path) -> None:
    model = load(student)
    before = model(IDS).logits
    save_student(model, tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert saved.dtype == torch.bfloat16
    assert torch.equal(model(IDS).logits, before)
    assert saved.lm_head.weight is saved.model.embed_tokens.weight  # still tied
    assert torch.equal(saved.float()(IDS).logits, load(student)(IDS).logits)


def test_loras_additions_are_trained_alone_and_added_up_when_saved(student: Path, tmp_path: Path) -> None:
    model = add_lora(load(student), LoraSettings(rank=4))
    trained = {name: weights for name, weights in model.named_parameters() if weights.requires_grad}
    assert {name.split(".")[-3] for name in trained} == {"lora_A", "lora_B"}
    for name, weights in trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.1)
    expected = model(IDS).logits
    save_student(model, tmp_path)
    saved = load(tmp_path)
    assert not any("lora" in name for name in saved.state_dict())
    assert (saved(IDS).logits - expected).norm() < 0.02 * expected.norm()
    assert (load(student)(IDS).logits - expected).norm() > 0.2 * expected.norm()


def test_greedy_answers_do_not_depend_on_who_is_asked_beside(student: Path) -> None:
    model, tokenizer = load(student), assistant_tokenizer()
    texts = ["<|im_start|>user\nkitchen light on<|im_end|>\n", "<|im_start|>user\nplay some music in the hall now<|im_end|>\n"]
    together = greedy_answers(model, tokenizer, texts, 6)
    assert together == [greedy_answers(model, tokenizer, [text], 6)[0] for text in texts]
