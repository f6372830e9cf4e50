"""On-policy distillation: TRL's divergences are the ones that we name, and teachers of other tokens are refused."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_rollouts import make_student
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from supertiny.config import validate
from supertiny.errors import ConfigError
from supertiny.train.config import DistillConfig
from supertiny.train.on_policy import trainer_settings, trl_beta
from supertiny.train.students import check_same_tokenizer

TEACHER, STUDENT = [0.25, 0.5, 0.25], [0.5, 0.25, 0.25]


def beta_of(name: str, jsd_beta: float | None = None) -> float:
    return trl_beta(validate(DistillConfig, {"mode": "on_policy", "losses": {name: 1}, "on_policy": {"jsd_beta": jsd_beta}}, "test"))


def kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one || other) of rows of probabilities, dense and in float64."""
    return (one * (one / other).log()).sum(-1)


def dense(name: str, student_NV: Tensor, teacher_NV: Tensor, jsd_beta: float) -> Tensor:
    p, q = torch.softmax(teacher_NV, -1), torch.softmax(student_NV, -1)
    mixture = jsd_beta * p + (1 - jsd_beta) * q
    return {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": jsd_beta * kl(p, mixture) + (1 - jsd_beta) * kl(q, mixture)}[name]


def by_trl(student_NV: Tensor, teacher_NV: Tensor, beta: float) -> Tensor:
    """TRL's divergence; an identity for an output embedding makes the hidden states the logits."""
    identity = torch.eye(student_NV.shape[-1], dtype=student_NV.dtype)
    divergence_N: Tensor = ChunkedDivergenceFunction.apply(student_NV, identity, None, teacher_NV, identity, None, beta)[0]
    return divergence_N


def test_reverse_kl_goes_from_student_to_teacher_and_forward_kl_back() -> None:
    student, teacher = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    reverse = 0.5 * math.log(2) + 0.3 * math.log(0.6) + 0.2 * math.log(0.8)
    forward = 0.25 * math.log(0.5) + 0.5 * math.log(5 / 3) + 0.25 * math.log(1.25)
    assert by_trl(student, teacher, beta_of("reverse_kl")).item() == pytest.approx(reverse, abs=1e-6)
    assert by_trl(student, teacher, beta_of("forward_kl")).item() == pytest.approx(forward, abs=1e-6)


def test_the_generalised_jsd_weighs_the_teacher_by_jsd_beta() -> None:
    student, teacher = (torch.tensor([each]).log() for each in (STUDENT, TEACHER))
    # 1/4 KL(teacher || m) + 3/4 KL(student || m) with m = (0.4375, 0.3125, 0.25)
    assert by_trl(student, teacher, beta_of("jsd", 0.25)).item() == pytest.approx(0.03200932, abs=1e-6)


@given(st.sampled_from(["forward_kl", "reverse_kl", "jsd"]), st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
@settings(max_examples=30)
def test_values_and_gradients_agree_with_a_dense_float64_reference(name: str, seed: int, jsd_beta: float) -> None:
    random = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(4, 9, generator=random, dtype=torch.float64) * 2 for _ in range(2))
    student.requires_grad_()
    expected_N = dense(name, student, teacher, jsd_beta)
    (expected_gradient,) = torch.autograd.grad(expected_N.sum(), student)
    hidden = student.detach().float().requires_grad_()
    divergence_N = by_trl(hidden, teacher.float(), beta_of(name, jsd_beta if name == "jsd" else None))
    divergence_N.sum().backward()
    assert hidden.grad is not None
    torch.testing.assert_close(divergence_N.detach().double(), expected_N.detach(), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(hidden.grad.double(), expected_gradient, atol=2e-5, rtol=1e-3)


def test_the_trainer_gets_our_settings_in_its_words(tmp_path: Path) -> None:
    drawn = {"temperature": 0.7, "max_completion_tokens": 40}
    values = {"mode": "on_policy", "on_policy": drawn, "batch": 32, "micro_batch": 8, "num_workers": 2, "zero_stage": None}
    theirs = trainer_settings(validate(DistillConfig, values, "test"), 50, 2, tmp_path)
    assert (theirs.beta, theirs.temperature, theirs.max_completion_length) == (1, 0.7, 40)
    assert (theirs.max_steps, theirs.gradient_accumulation_steps) == (50, 2)
    assert not theirs.use_vllm


def test_a_teacher_with_the_students_tokens_is_accepted(tmp_path: Path) -> None:
    check_same_tokenizer(make_student(tmp_path, "teacher"), make_student(tmp_path, "student"))


def test_a_teacher_of_other_tokens_is_refused_with_what_it_would_take(tmp_path: Path) -> None:
    student = make_student(tmp_path, "student")
    teacher = shutil.copytree(student, tmp_path / "teacher")
    text = (teacher / "tokenizer.json").read_text()
    first, second = "<|im_start|>", "<|im_end|>"
    swapped = text.replace(first, "@@").replace(second, first).replace("@@", second)
    (teacher / "tokenizer.json").write_text(swapped)
    with pytest.raises(ConfigError, match=r"give 2 tokens different ids, such as '<\|im_end\|>'.*universal logit distillation"):
        check_same_tokenizer(teacher, student)


def test_a_teacher_with_a_longer_embedding_is_refused(tmp_path: Path) -> None:
    student = make_student(tmp_path, "student")
    teacher = shutil.copytree(student, tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({**config, "vocab_size": 640}))
    with pytest.raises(ConfigError, match="the tokens are the same; 510 and 510 tokens, embeddings of 640 and 512 rows"):
        check_same_tokenizer(teacher, student)
