import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compress_run import make_run, save_byte_tokenizer, tiny_student
from test_retokenize import peak_bytes
from tiny_rollouts import publish_rollouts
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from supertiny.artifacts import open_artifact
from supertiny.compress.calibration import MAX_BATCH_TOKENS
from supertiny.compress.config import PruneConfig
from supertiny.compress.export import divergence, weight_bytes
from supertiny.compress.importance import (
    block_influence,
    channel_importance,
    kept_channels,
    kept_layers,
    layers_to_keep,
    loss_influence,
    mean_loss,
    window_influence,
)
from supertiny.compress.logits import logits_by_part
from supertiny.compress.prune import Cut, plan, prune, write_pruned
from supertiny.compress.shapes import read_shape
from supertiny.compress.solver import solve, target_of
from supertiny.compress.vocabulary import read_kept_ids
from supertiny.errors import ConfigError, CorruptArtifact
from supertiny.rollout_table import read_rollouts

BATCHES = [[[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]], [[11, 12, 13]]]
LONG = [[number % 384 for number in range(MAX_BATCH_TOKENS + 3)]]


def silence_channels(model: Qwen2ForCausalLM, channels: torch.Tensor) -> None:
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[channels] = 0


def silence_layer(model: Qwen2ForCausalLM, layer: int) -> None:
    with torch.no_grad():
        model.model.layers[layer].self_attn.o_proj.weight.zero_()
        model.model.layers[layer].mlp.down_proj.weight.zero_()


def pruned(model: Qwen2ForCausalLM, folder: Path, axis: str, fraction: float) -> dict:
    model.save_pretrained(folder / "before")
    shape = read_shape(model.config.to_dict())
    config = PruneConfig(axis=axis, target_parameters_fraction=fraction, tolerance_fraction=0.5)
    smaller = solve(shape, axis, target_of(config, shape))
    return write_pruned(folder / "before", folder / "after", Cut(smaller), BATCHES)


def test_kept_channels_are_the_most_important_in_their_order():
    assert kept_channels(torch.tensor([0.1, 9.0, 0.2, 8.0, 7.0]), 3).tolist() == [1, 3, 4]


def test_kept_layers_are_the_most_influential_in_their_order():
    assert kept_layers([0.5, 0.01, 0.2, 0.9], 3) == [0, 2, 3]


def test_channel_importance_is_mean_activation_times_the_norm_of_its_reader():
    model = tiny_student(1)
    linear = model.model.layers[0].mlp.down_proj
    seen = []
    handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
    for batch in BATCHES:
        model(torch.tensor(batch))
    handle.remove()
    expected = torch.cat(seen).abs().mean(dim=0) * linear.weight.square().sum(dim=0).sqrt()
    torch.testing.assert_close(channel_importance(model, BATCHES)[0], expected)


def test_a_layer_that_adds_nothing_has_no_influence():
    model = tiny_student()
    silence_layer(model, 2)
    influence = block_influence(model, BATCHES)
    assert influence[2] == pytest.approx(0, abs=1e-5)
    assert min(influence[:2] + influence[3:]) > 0.01


def test_removing_silent_channels_changes_no_logit(tmp_path: Path):
    model = tiny_student()
    silence_channels(model, torch.randperm(256)[:128])
    removed = pruned(model, tmp_path, "width", 0.8)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    assert removed == {"removed_layers": [], "removed_channels_per_layer": 128}
    assert after.config.intermediate_size == 128
    torch.testing.assert_close(after(torch.tensor(BATCHES[0])).logits, model(torch.tensor(BATCHES[0])).logits, atol=1e-5, rtol=1e-5)


def test_removing_a_silent_layer_changes_no_logit(tmp_path: Path):
    model = tiny_student()
    silence_layer(model, 1)
    removed = pruned(model, tmp_path, "depth", 0.8)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    assert removed == {"removed_layers": [1], "removed_channels_per_layer": 0}
    assert len(json.loads((tmp_path / "after" / "config.json").read_text())["layer_types"]) == 3
    torch.testing.assert_close(after(torch.tensor(BATCHES[0])).logits, model(torch.tensor(BATCHES[0])).logits, atol=1e-5, rtol=1e-5)


def test_pruned_weights_keep_their_type_and_are_counted_exactly(tmp_path: Path):
    model = tiny_student().to(torch.bfloat16)
    pruned(model, tmp_path, "width", 0.8)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "after", dtype="auto")
    assert after.dtype == torch.bfloat16
    assert read_shape(after.config.to_dict()).num_parameters == after.num_parameters()
    assert weight_bytes(tmp_path / "after") == pytest.approx(2 * after.num_parameters(), rel=0.05)


def test_what_came_with_the_model_is_copied_byte_for_byte(tmp_path: Path):
    model = tiny_student()
    (tmp_path / "before").mkdir()
    for name in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / "before" / name).write_text(f"{{ {name} }}")
    pruned(model, tmp_path, "width", 0.8)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_divergence_of_a_model_from_itself_is_nothing(tmp_path: Path):
    tiny_student().save_pretrained(tmp_path)
    assert divergence(tmp_path, tmp_path, BATCHES) == {"kl_nats": 0.0, "greedy_agreement": 1.0}


def test_divergence_is_the_mean_kl_over_positions(tmp_path: Path):
    models = [tiny_student(), tiny_student()]
    silence_layer(models[1], 0)
    for model, name in zip(models, "ab", strict=True):
        model.save_pretrained(tmp_path / name)
    batches = [*BATCHES, LONG]
    before, after = (torch.cat([model(torch.tensor(batch)).logits.flatten(0, 1) for batch in batches]) for model in models)
    expected = torch.nn.functional.kl_div(after.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="batchmean")
    moved = divergence(tmp_path / "a", tmp_path / "b", batches)
    assert moved["kl_nats"] == pytest.approx(expected.item(), rel=1e-4)
    assert moved["greedy_agreement"] == pytest.approx((before.argmax(-1) == after.argmax(-1)).float().mean().item())


@pytest.mark.parametrize(("axis", "removed"), [("width", ([], 128)), ("depth", ([2], 0))])
def test_the_stage_publishes_what_it_removed_and_how_far_the_model_moved(tmp_path: Path, axis: str, removed: tuple):
    model = tiny_student()
    silence_layer(model, 2)
    silence_channels(model, torch.arange(128))
    make_run(tmp_path, "sft", model)
    artifact = prune(PruneConfig(run_root=str(tmp_path), axis=axis, tolerance_fraction=0.2))
    metrics = artifact.manifest.metrics
    assert (metrics["removed_layers"], metrics["removed_channels_per_layer"]) == removed
    assert metrics["kl_nats"] == pytest.approx(0, abs=1e-5)
    assert metrics["bytes"] == (artifact.path / "model.safetensors").stat().st_size
    assert set(artifact.manifest.parents) == {"student", "rollouts"}


def test_a_mix_of_axes_is_cut_in_one_go(tmp_path: Path):
    model = tiny_student()
    silence_layer(model, 1)
    silence_channels(model, torch.arange(128))
    model.save_pretrained(tmp_path / "before")
    save_byte_tokenizer(tmp_path / "before")
    shape = replace(read_shape(model.config.to_dict()), vocab_size=258, num_hidden_layers=3, intermediate_size=128)
    removed = write_pruned(tmp_path / "before", tmp_path / "after", Cut(shape, kept_ids=range(258)), BATCHES)
    assert removed == {"removed_layers": [1], "removed_channels_per_layer": 128, "removed_tokens": 126}
    assert divergence(tmp_path / "before", tmp_path / "after", BATCHES, range(258))["kl_nats"] == pytest.approx(0, abs=1e-5)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    assert read_shape(after.config.to_dict()) == shape
    assert after.lm_head.weight is after.model.embed_tokens.weight


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_supported_architecture_is_cut_along_all_axes(tmp_path: Path, model_type: str, tied: bool):
    torch.manual_seed(0)
    sizes = {"vocab_size": 384, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes, **heads, tie_word_embeddings=tied)).save_pretrained(
        tmp_path / "before"
    )
    save_byte_tokenizer(tmp_path / "before")
    values = json.loads((tmp_path / "before" / "config.json").read_text())
    shape = replace(read_shape(values), vocab_size=258, num_hidden_layers=2, intermediate_size=128)
    write_pruned(tmp_path / "before", tmp_path / "after", Cut(shape, kept_ids=range(258)), BATCHES)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    assert read_shape(after.config.to_dict()) == shape
    assert after.num_parameters() == shape.num_parameters
    assert after(torch.tensor(BATCHES[1])).logits.shape == (1, 3, 258)


def test_the_divergence_of_a_cut_vocabulary_is_over_the_kept_tokens_and_tells_what_was_dropped(tmp_path: Path):
    model = tiny_student()
    model.save_pretrained(tmp_path / "before")
    save_byte_tokenizer(tmp_path / "before")
    shape = replace(read_shape(model.config.to_dict()), vocab_size=258)
    write_pruned(tmp_path / "before", tmp_path / "after", Cut(shape, kept_ids=range(258)), BATCHES)
    moved = divergence(tmp_path / "before", tmp_path / "after", BATCHES, range(258))
    p_NV = torch.cat([model(torch.tensor(batch)).logits.softmax(-1).flatten(0, 1) for batch in BATCHES])
    assert moved["kl_nats"] == pytest.approx(0, abs=1e-5)
    assert moved["greedy_agreement"] == 1
    assert moved["dropped_mass"] == pytest.approx(p_NV[:, 258:].sum(-1).mean().item(), rel=1e-4)


def test_a_cut_vocabulary_is_published_with_rollouts_in_its_tokens(tmp_path: Path):
    make_run(tmp_path, "sft", tiny_student(1, 512), num_pairs=200)
    artifact = prune(PruneConfig(run_root=str(tmp_path), axis="vocab", target_parameters_fraction=0.95))
    assert artifact.manifest.metrics["removed_tokens"] == 128
    assert artifact.manifest.metrics["kl_nats"] == pytest.approx(0, abs=1e-5)
    rollouts = open_artifact("prune-rollouts", str(tmp_path), "rollouts")
    assert set(rollouts.manifest.parents) == {"rollouts", "model"}
    rows, tokenizer = read_rollouts(rollouts.path), AutoTokenizer.from_pretrained(artifact.path)
    assert [row.prompt for row in rows] == [row.prompt for row in read_rollouts(tmp_path / "rollouts")]
    taught = [row.completion for row in rows if row.completion.top_k]
    assert len(taught) == 30
    assert all(tokenizer.decode(each.token_ids) == f"{each.text}<|im_end|>" for each in taught)
    assert all([ids[0] for ids in each.top_k.ids] == each.token_ids for each in taught)
    assert float("-inf") in {logprob for each in taught for logprobs in each.top_k.logprobs for logprob in logprobs}


def test_ids_that_the_config_names_are_those_of_the_fewer_tokens_and_transformers_has_nothing_to_warn_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    monkeypatch.setattr("transformers.configuration_utils.logger.warning_once", said.append)
    model = tiny_student(1, 512)
    model.config.eos_token_id = model.generation_config.eos_token_id = 457  # beyond the rows that stay
    make_run(tmp_path, "sft", model, num_pairs=200)
    artifact = prune(PruneConfig(run_root=str(tmp_path), axis="vocab", target_parameters_fraction=0.95))
    files = [json.loads((artifact.path / name).read_text()) for name in ("config.json", "generation_config.json")]
    assert [each["eos_token_id"] for each in files] == 2 * [AutoTokenizer.from_pretrained(artifact.path).eos_token_id]
    assert said == []


def test_rollouts_that_a_kill_kept_from_being_published_are_on_the_next_run_without_planning_or_pruning_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_run(tmp_path, "sft", tiny_student(1, 512), num_pairs=200)
    config = PruneConfig(run_root=str(tmp_path), axis="vocab", target_parameters_fraction=0.95)
    made = prune(config).path.stat().st_ino
    shutil.move(tmp_path / "prune-rollouts", tmp_path / "before")
    monkeypatch.delattr("supertiny.compress.prune.plan")  # as a later version of it might choose other tokens
    assert prune(config).path.stat().st_ino == made
    assert read_rollouts(tmp_path / "prune-rollouts") == read_rollouts(tmp_path / "before")


def test_rollouts_made_again_with_a_token_that_the_cut_dropped_are_named_with_what_to_do(tmp_path: Path):
    make_run(tmp_path, "sft", tiny_student(1, 512), num_pairs=200)
    *rows, last = read_rollouts(tmp_path / "rollouts")
    shutil.rmtree(tmp_path / "rollouts")
    publish_rollouts(tmp_path, [*rows, last])
    config = PruneConfig(run_root=str(tmp_path), axis="vocab", target_parameters_fraction=0.95)
    dropped = min({*range(200)} - {*read_kept_ids(prune(config).path)})
    shutil.rmtree(tmp_path / "rollouts")
    text = AutoTokenizer.from_pretrained(tmp_path / "sft").decode([dropped])
    completion = last.completion.model_copy(update={"text": text, "token_ids": [dropped, 457], "top_k": None})
    publish_rollouts(tmp_path, [*rows, last.model_copy(update={"completion": completion})])
    for _ in range(2):
        with pytest.raises(
            CorruptArtifact, match=rf"rollouts: rollout p39/0 has the token id {dropped}, which .*prune dropped: .*; remove .*prune and"
        ):
            prune(config)
    shutil.rmtree(tmp_path / "prune")
    assert dropped in read_kept_ids(prune(config).path)
    assert read_rollouts(tmp_path / "prune-rollouts")[-1].completion.token_ids[0] < dropped


@pytest.mark.parametrize(
    ("strange", "said"), [([500], "its token id 500 is no token of the student's"), ([5, 6], "its 3 token ids are not its text")]
)
def test_a_rollout_with_other_tokens_than_the_students_is_refused_before_a_vocabulary_is_cut_be_it_drawn_or_not(
    tmp_path: Path, strange: list[int], said: str
):
    make_run(tmp_path, "sft", tiny_student(1, 512), num_pairs=200)
    *rows, last = read_rollouts(tmp_path / "rollouts")
    completion = last.completion.model_copy(update={"token_ids": [*strange, 457], "top_k": None})
    publish_rollouts(tmp_path, [*rows, last.model_copy(update={"completion": completion})], "mixed")
    config = PruneConfig(run_root=str(tmp_path), axis="vocab", target_parameters_fraction=0.95, rollouts="mixed", num_rows=1)
    with pytest.raises(CorruptArtifact, match=f"rollout p39/0: {said}"):
        prune(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixed", "rollouts", "sft"]


def test_a_vocabulary_that_all_has_to_stay_is_not_cut(tmp_path: Path):
    make_run(tmp_path, "sft", tiny_student(1))
    with pytest.raises(ConfigError, match="258 of 384 tokens have to stay"):
        prune(PruneConfig(run_root=str(tmp_path), axis="vocab", target_parameters_fraction=0.93))
    with pytest.raises(
        ConfigError, match=r"nothing is left to remove, 258 of 384 tokens have to stay .* and vocabularies go in steps of 128"
    ):
        prune(PruneConfig(run_root=str(tmp_path), axis="vocab", target_parameters_fraction=0.93, vocab_size=256))


def test_a_vocabulary_that_would_drop_a_special_token_is_refused_with_what_has_to_stay(tmp_path: Path):
    make_run(tmp_path, "sft", tiny_student(1, 512), num_pairs=200)
    stay = "256 single bytes, 2 special and tool tokens, 0 that rollouts and settings use"
    with pytest.raises(ConfigError, match=rf"vocab_size 256 has no room for the 258 tokens that have to stay \({stay}.*\); take 384"):
        prune(PruneConfig(run_root=str(tmp_path), axis="vocab", vocab_size=256))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rollouts", "sft"]


def test_tokens_are_looked_for_while_only_some_hundreds_of_rollouts_are_held(tmp_path: Path):
    make_run(tmp_path, "sft", tiny_student(1, 512), num_pairs=200)
    publish_rollouts(tmp_path, read_rollouts(tmp_path / "rollouts") * 30, "many")
    config = PruneConfig(axis="vocab", target_parameters_fraction=0.95)
    whole = peak_bytes(lambda: read_rollouts(tmp_path / "many", top_k=False))
    assert peak_bytes(lambda: plan(config, tmp_path / "sft", tmp_path / "many")) < 0.6 * whole


def test_contiguous_layers_are_the_run_that_changes_the_hidden_state_least():
    model = tiny_student()
    silence_layer(model, 1)
    silence_layer(model, 2)
    assert layers_to_keep(model, BATCHES, 2, "contiguous", "similarity") == [0, 3]
    assert window_influence(model, BATCHES, 2)[1] == pytest.approx(0, abs=1e-5)


def test_a_run_of_one_layer_has_that_layers_influence():
    model = tiny_student()
    assert window_influence(model, BATCHES, 1) == pytest.approx(block_influence(model, BATCHES), abs=1e-6)


def test_a_layers_influence_on_the_loss_is_what_the_loss_rises_by_without_it():
    model = tiny_student(2)
    silence_layer(model, 0)
    rises = loss_influence(model, BATCHES)
    assert rises[0] == pytest.approx(0, abs=1e-5)
    whole = mean_loss(model, BATCHES)
    model.model.layers = model.model.layers[:1]
    assert rises[1] == pytest.approx(mean_loss(model, BATCHES) - whole, abs=1e-5)


def hybrid_student() -> Qwen2ForCausalLM:
    """As `tiny_student`, but the last two layers see four tokens back alone."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 384, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, **window, initializer_range=0.1)).eval()


ROWS = [[[(7 * at + row) % 384 for at in range(24)] for row in range(4)]]
"""Longer than the window."""


def test_layers_keep_their_attention_where_one_before_them_is_left_out():
    model = hybrid_student()
    silence_layer(model, 0)
    before = model.config.to_dict()
    assert loss_influence(model, ROWS)[0] == pytest.approx(0, abs=1e-6)
    assert model.config.to_dict() == before


def test_a_mix_cuts_the_channels_that_matter_least_in_the_layers_that_stay(tmp_path: Path):
    model = hybrid_student()
    silence_layer(model, 0)
    model.save_pretrained(tmp_path / "before")
    shape = read_shape(model.config.to_dict())
    shallow, narrow = replace(shape, num_hidden_layers=3), replace(shape, num_hidden_layers=3, intermediate_size=128)
    for source, name, cut in (("before", "shallow", shallow), ("shallow", "narrow", narrow), ("before", "mix", narrow)):
        write_pruned(tmp_path / source, tmp_path / name, Cut(cut), ROWS)
    weights = [AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("narrow", "mix")]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_mean_loss_is_the_models_own_over_whole_rows():
    model = tiny_student(1)
    ids = torch.tensor(BATCHES[0])
    assert mean_loss(model, BATCHES[:1]) == pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-5)


def test_a_long_rows_logits_never_exist_together():
    model = tiny_student(1)
    logits_NV, loss = model(torch.tensor(LONG)).logits[0], model(torch.tensor(LONG), labels=torch.tensor(LONG)).loss.item()
    sizes = []
    model.lm_head.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[:-1].numel()))
    torch.testing.assert_close(torch.cat(list(logits_by_part(model, LONG))), logits_NV)
    assert mean_loss(model, [LONG]) == pytest.approx(loss, rel=1e-5)
    assert sizes == [1, MAX_BATCH_TOKENS, 3] * 2


def test_an_unreachable_target_fails_before_anything_is_made(tmp_path: Path):
    make_run(tmp_path, "sft", tiny_student())
    with pytest.raises(ConfigError, match="nearest is intermediate_size 128"):
        prune(PruneConfig(run_root=str(tmp_path), target_parameters_fraction=0.2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rollouts", "sft"]
