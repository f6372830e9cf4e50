"""The student as training sees it, against transformers' own forward pass and the dense losses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_student import look
from tiny_rollouts import assistant_tokenizer, gold_rollouts, make_student
from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM

from supertiny.errors import ConfigError
from supertiny.train.batching import MicroBatch, collate
from supertiny.train.losses import TERMS
from supertiny.train.objective import Objective
from supertiny.train.packing import PackedRows, pack
from supertiny.train.student_loss import StudentLoss, check_boundaries

SCALES = [1.0, 0.5, 2.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> PackedRows:
    return pack(gold_rollouts(assistant_tokenizer(), 8), assistant_tokenizer(), 1024, tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def batch(rows: PackedRows) -> MicroBatch:
    return collate(rows, np.arange(8))


def open_model(folder: Path, tied: bool = True) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() * 2)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_losses_and_every_weights_gradient_are_those_of_the_models_own_logits(
    folder: Path, rows: PackedRows, batch: MicroBatch, tied: bool
) -> None:
    student, plain = StudentLoss(open_model(folder, tied), Objective(tuple(TERMS))), open_model(folder, tied)
    loss, sums = student(batch=batch, scales=SCALES)
    loss.backward()
    mask_BT = torch.arange(batch.tokens_BT.shape[1]) < torch.tensor(rows.lengths)[:, None]
    logits = plain(input_ids=batch.tokens_BT, attention_mask=mask_BT).logits.flatten(0, 1)[batch.predictors_N]
    seen, teacher = look(logits, batch.taught), batch.taught.teacher_logprobs_NK.double()
    expected = torch.stack([term(seen, teacher).sum() for term in TERMS.values()])
    (expected @ torch.tensor(SCALES, dtype=torch.float64)).backward()
    assert sums.tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    weights = dict(plain.named_parameters())
    assert dict(student.model.named_parameters()).keys() == weights.keys()
    for name, weight in student.model.named_parameters():
        torch.testing.assert_close(weight.grad, weights[name].grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("line_tokens", [96, 1024])
def test_rows_that_share_lines_have_the_losses_and_gradients_that_they_have_alone(
    folder: Path, rows: PackedRows, attention: str, line_tokens: int
) -> None:
    student = StudentLoss(open_model(folder), Objective(tuple(TERMS)))
    student.model.set_attn_implementation(attention)
    apart, together = (collate(rows, np.arange(8), most) for most in (None, line_tokens))
    assert together.tokens_BT.shape[0] < apart.tokens_BT.shape[0]
    results = []
    for batch in (apart, together):
        student.zero_grad()
        loss, sums = student(batch=batch, scales=SCALES)
        loss.backward()
        results.append([sums, *(weight.grad.clone() for weight in student.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # eager attention has its softmax in float32


def test_a_model_that_does_not_heed_where_rows_begin_is_refused_lines_that_are_shared(folder: Path) -> None:
    model = open_model(folder)
    check_boundaries(model)
    model.get_decoder().register_forward_pre_hook(lambda _, args, given: (args, {**given, "position_ids": None}), with_kwargs=True)
    with pytest.raises(ConfigError, match="student of the type qwen2 does not keep rows apart by their positions"):
        check_boundaries(model)


@pytest.mark.parametrize("tied", [True, False])
def test_the_optimizer_sees_every_weight_once(folder: Path, tied: bool) -> None:
    model = open_model(folder, tied)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in StudentLoss(model, Objective(("cross_entropy",))).named_parameters()] == [f"model.{name}" for name in names]


def test_what_is_saved_is_the_plain_model(folder: Path, batch: MicroBatch, tmp_path: Path) -> None:
    student = StudentLoss(open_model(folder), Objective(("cross_entropy",)))
    student(batch=batch, scales=[1.0])[0].backward()
    student.model.save_pretrained(tmp_path)
    saved, before = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).state_dict(), open_model(folder).state_dict()
    assert saved.keys() == before.keys()
    assert all(torch.equal(saved[name], before[name]) for name in before)


def test_a_head_that_scales_its_logits_is_refused() -> None:
    shape = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = GraniteForCausalLM(GraniteConfig(**shape, num_key_value_heads=1, logits_scaling=4.0))
    with pytest.raises(ConfigError, match="student of the type granite: its logits are not hidden states times output embedding alone"):
        StudentLoss(model, Objective(("cross_entropy",)))


def test_a_head_with_a_bias_is_refused(folder: Path) -> None:
    model = open_model(folder)
    model.lm_head.bias = torch.nn.Parameter(torch.ones(model.config.vocab_size, dtype=torch.float64))
    with pytest.raises(ConfigError, match="a bias, a scale or a cap"):
        StudentLoss(model, Objective(("cross_entropy",)))


def test_a_head_that_caps_its_logits_is_refused_however_small_they_are(folder: Path) -> None:
    model = open_model(folder)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ConfigError, match="a bias, a scale or a cap"):
        StudentLoss(model, Objective(("cross_entropy",)))
