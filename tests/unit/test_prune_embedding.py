import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_run import make_run, save_byte_tokenizer, tiny_student
from transformers import AutoConfig, AutoModelForCausalLM

from supertiny.compress.config import PruneConfig
from supertiny.compress.export import divergence
from supertiny.compress.importance import embedding_importance, embedding_norms, head_importance, kept_heads
from supertiny.compress.prune import Cut, prune, write_pruned
from supertiny.compress.shapes import read_shape, with_hidden_size

BATCHES = [[[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]], [[11, 12, 13]]]
every_architecture = pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
tied_or_not = pytest.mark.parametrize("tied", [True, False])
biased_or_not = pytest.mark.parametrize("biased", [True, False])


def wide_student(model_type: str, tied: bool, biased: bool) -> Any:
    """Embeddings of 256; four query heads of 64, two for each of two key-value heads; no weight or bias that is 0 or 1 by construction."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 384, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2} | ({} if model_type == "qwen2" else {"head_dim": 64})
    config = AutoConfig.for_model(model_type, **sizes, **heads, tie_word_embeddings=tied, attention_bias=biased, initializer_range=0.1)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:
                weight.normal_(1 if "norm" in name else 0, 0.2)
    return model


def silence_embedding(model: Any, channels: torch.Tensor) -> None:
    """Make some channels of the hidden state 0 everywhere."""
    with torch.no_grad():
        model.model.embed_tokens.weight[:, channels] = 0
        for layer in model.model.layers:
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight[channels] = 0
                if writer.bias is not None:
                    writer.bias[channels] = 0


def silence_heads(model: Any, heads: tuple[int, ...]) -> None:
    with torch.no_grad():
        for layer in model.model.layers:
            for head in heads:
                layer.self_attn.o_proj.weight[:, 64 * head : 64 * (head + 1)] = 0


def narrowed(model: Any, folder: Path, **sizes: int) -> dict:
    """Cut to an embedding of 128 and further sizes; what was removed."""
    model.save_pretrained(folder / "before")
    save_byte_tokenizer(folder / "before")
    shape = replace(with_hidden_size(read_shape(json.loads((folder / "before" / "config.json").read_text())), 128), **sizes)
    kept_ids = range(shape.vocab_size) if shape.vocab_size < 384 else None
    removed = write_pruned(folder / "before", folder / "after", Cut(shape, kept_ids=kept_ids), BATCHES)
    assert read_shape(json.loads((folder / "after" / "config.json").read_text())) == shape
    return removed


def test_of_every_group_of_heads_equally_many_stay_the_most_important_in_their_order():
    assert kept_heads(torch.tensor([9.0, 8.0, 7.0, 1.0, 3.0, 2.0]), 4, 2).tolist() == [0, 1, 4, 5]
    assert kept_heads(torch.tensor([1.0, 2.0, 4.0, 3.0]), 2, 2).tolist() == [1, 2]


def test_an_embedding_channels_importance_is_its_mean_activation_behind_the_norms():
    model = wide_student("qwen2", tied=True, biased=True)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handles = [
        norm.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].flatten(0, 1), output.flatten(0, 1))))
        for norm in embedding_norms(model)
    ]
    for batch in BATCHES:
        model(torch.tensor(batch))
    for handle in handles:
        handle.remove()
    importance_D, squares = embedding_importance(model, BATCHES)
    assert len(squares) == 7
    torch.testing.assert_close(importance_D, torch.cat([after for _, after in seen]).abs().mean(dim=0))
    torch.testing.assert_close(squares[-1], torch.cat([seen[6][0], seen[13][0]]).square().mean(dim=0))


def test_a_heads_importance_is_the_mean_norm_of_what_it_adds():
    model = wide_student("qwen2", tied=True, biased=True)
    linear = model.model.layers[1].self_attn.o_proj
    seen: list[torch.Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
    for batch in BATCHES:
        model(torch.tensor(batch))
    handle.remove()
    head_NF = torch.cat(seen) * (torch.arange(256) // 64 == 2)
    assert head_importance(model, BATCHES)[1][2].item() == pytest.approx(linear(head_NF).norm(dim=-1).mean().item(), rel=1e-4)


@every_architecture
@tied_or_not
@biased_or_not
def test_removing_silent_embedding_channels_and_heads_changes_no_logit(tmp_path: Path, model_type: str, tied: bool, biased: bool):
    model = wide_student(model_type, tied, biased)
    silence_embedding(model, torch.randperm(256)[:128])
    if model_type == "qwen2":
        silence_heads(model, (1, 2))
    removed = narrowed(model, tmp_path)
    heads = {"removed_heads": 2} if model_type == "qwen2" else {}
    assert removed == {"removed_layers": [], "removed_channels_per_layer": 0, "removed_embedding_channels": 128, **heads}
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    torch.testing.assert_close(after(torch.tensor(BATCHES[0])).logits, model(torch.tensor(BATCHES[0])).logits, atol=5e-3, rtol=5e-3)
    assert divergence(tmp_path / "before", tmp_path / "after", BATCHES)["kl_nats"] == pytest.approx(0, abs=1e-5)


@every_architecture
@tied_or_not
@biased_or_not
def test_a_student_cut_along_all_axes_and_its_embedding_loads_in_transformers(tmp_path: Path, model_type: str, tied: bool, biased: bool):
    removed = narrowed(wide_student(model_type, tied, biased), tmp_path, vocab_size=258, num_hidden_layers=2, intermediate_size=128)
    assert (len(removed["removed_layers"]), removed["removed_channels_per_layer"], removed["removed_tokens"]) == (1, 128, 126)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    assert after.num_parameters() == read_shape(after.config.to_dict()).num_parameters
    assert (after.lm_head.weight is after.model.embed_tokens.weight) == tied
    logits_BTV = after(torch.tensor(BATCHES[1])).logits
    assert logits_BTV.shape == (1, 3, 258)
    assert logits_BTV.isfinite().all()


def test_the_stage_says_what_it_removed_and_writes_what_was_solved(tmp_path: Path):
    make_run(tmp_path, "rl", tiny_student(2, hidden_size=256).to(torch.bfloat16))
    settings = {"student": "rl", "hidden_size": 128, "axis": "depth+width", "target_parameters_fraction": 0.5, "tolerance_fraction": 0.3}
    artifact = prune(PruneConfig(run_root=str(tmp_path), **settings))
    metrics = artifact.manifest.metrics
    assert (metrics["removed_embedding_channels"], metrics["removed_heads"], len(metrics["removed_layers"])) == (128, 2, 1)
    model = AutoModelForCausalLM.from_pretrained(artifact.path, dtype="auto")
    assert (model.config.hidden_size, model.config.num_attention_heads, model.config.num_key_value_heads) == (128, 2, 1)
    assert model.num_parameters() == metrics["parameters"]
    assert sum(weight.nbytes for weight in model.parameters()) == read_shape(model.config.to_dict()).num_bytes()
