from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.tiny_model import make_tiny_model
from torch.nn import functional
from transformers import AutoModelForCausalLM

from supertiny.errors import ConfigError
from supertiny.formats import Format, scheme_of
from supertiny.train.config import DistillConfig, LoraSettings
from supertiny.train.fake_quantization import check_groups, round_layers, rounded, straight_through
from supertiny.train.quantization_config import QuantizationAwareSettings
from supertiny.train.students import save_student

FORMATS: tuple[Format, ...] = ("awq_w4a16", "gptq_w4a16", "w8a8", "fp8_dynamic")
TOKENS = torch.arange(24).reshape(2, 12)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models"))


def aware(form: Format, group_size: int | None = None) -> QuantizationAwareSettings:
    return QuantizationAwareSettings.model_validate({"format": form, "group_size": group_size})


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_a_4_bit_group_is_rounded_as_by_hand() -> None:
    """Symmetric: the scale is 7.5 over the values' largest, 15; the values -8 to 7 times it are what there is."""
    grid = scheme_of("gptq_w4a16", 32).weights
    values = torch.zeros(1, 32)
    values[0, :5] = torch.tensor([15.0, -15.0, 3.1, 2.9, 0.9])
    assert rounded(values, grid)[0, :6].tolist() == [14.0, -16.0, 4.0, 2.0, 0.0, 0.0]


def test_a_group_has_a_scale_of_its_own() -> None:
    values = torch.cat([torch.linspace(-1, 1, 32), torch.linspace(-100, 100, 32)])[None]
    moved = (rounded(values, scheme_of("gptq_w4a16", 32).weights) - values).abs()
    assert moved[0, :32].max() < 0.1 < moved[0, 32:].max()


@pytest.mark.parametrize("form", FORMATS)
def test_the_gradient_passes_the_rounding_unchanged(form: Format) -> None:
    weights = torch.randn(4, 128, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(4, 128, dtype=torch.float64)
    grid = scheme_of(form, aware(form).group_size).weights
    (straight_through(weights, grid) * towards).sum().backward()
    assert torch.equal(weights.grad, towards)


def test_activations_of_w8a8_are_rounded_by_token(student: Path) -> None:
    layer = load(student).model.layers[0].mlp.up_proj
    inputs = torch.cat([torch.randn(1, 128), 100 * torch.randn(1, 128)])
    plain = functional.linear(inputs, rounded(layer.weight, scheme_of("w8a8", None).weights))
    model = load(student)
    round_layers(model, aware("w8a8"))
    found = model.model.layers[0].mlp.up_proj(inputs)
    relative = (found - plain).norm(dim=1) / plain.norm(dim=1)
    assert relative.min() > 0
    assert relative.max() < 0.02  # one scale for both tokens would leave the first some two bits


@pytest.mark.parametrize("form", FORMATS)
def test_the_model_computes_with_rounded_weights_and_saves_its_own(form: Format, student: Path, tmp_path: Path) -> None:
    plain, model = load(student), load(student)
    round_layers(model, aware(form))
    with torch.no_grad():
        assert not torch.allclose(model(TOKENS).logits, plain(TOKENS).logits, atol=1e-4)
    save_student(model, tmp_path)
    saved, original = load(tmp_path).state_dict(), plain.state_dict()
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], original[name]) for name in saved)


def test_the_head_and_the_embedding_stay_as_they_are(student: Path) -> None:
    model = load(student)
    round_layers(model, aware("gptq_w4a16"))
    assert type(model.lm_head) is torch.nn.Linear


def test_training_through_the_rounding_lowers_the_loss_of_the_rounded_model(student: Path) -> None:
    """Towards the unrounded model's own answers; training without the rounding could not lower it."""
    teacher, model = load(student), load(student)
    round_layers(model, aware("gptq_w4a16"))
    target = teacher(TOKENS).logits.detach().softmax(-1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = functional.kl_div(model(TOKENS).logits.log_softmax(-1), target, reduction="batchmean")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_groups_that_do_not_fit_are_named_before_the_model_is_loaded(student: Path) -> None:
    check_groups(student, aware("gptq_w4a16", 64))
    (wide := student.parent / "wide").mkdir(exist_ok=True)
    config = (student / "config.json").read_text().replace('"intermediate_size": 384', '"intermediate_size": 416')
    (wide / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=r"group_size 128 does not divide the 416 inputs of model\.layers\.0\.mlp\.down_proj"):
        check_groups(wide, aware("awq_w4a16"))


def test_a_4_bit_format_has_groups_of_128_unless_told_otherwise() -> None:
    assert [aware(form).group_size for form in FORMATS] == [128, 128, None, None]
    with pytest.raises(ValidationError, match="without effect on w8a8"):
        aware("w8a8", 64)


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"lora": LoraSettings()}, "rounded only once it is added up"), ({"mode": "on_policy"}, "only off-policy distillation takes it")],
)
def test_what_does_not_go_with_it_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        DistillConfig.model_validate({"quantization_aware": {"format": "w8a8"}, **settings})
