"""A model folder with random weights, small and quick to make: for tests of engines, which need no good answers."""

from __future__ import annotations

from pathlib import Path

from supertiny.artifacts import MANIFEST, FileEntry, Manifest, file_entries, write_atomically


def make_tiny_model(folder: Path, name: str = "tiny") -> Path:
    """A Qwen2 of 1.3M random parameters with a tokenizer and a manifest in `folder/name`; always the same."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from supertiny.train.tokenizer import make_tokenizer

    path = folder / name
    path.mkdir(parents=True)
    words = ["turn", "on", "off", "the", "light", "in", "kitchen", "hall", "set", "volume", "to", "play", "music"]
    make_tokenizer([" ".join(words[start:] + words[:start]) for start in range(len(words))], 384).save_pretrained(path)
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=384,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,  # far from uniform, so that a wrong position or token shows
    )
    Qwen2ForCausalLM(shape).to(torch.bfloat16).save_pretrained(path)
    write_manifest(path)
    return path


def write_manifest(path: Path) -> None:
    """Describe a model folder as an artifact."""
    entries: dict[str, FileEntry] = file_entries(path)
    manifest = Manifest(kind="model", name=path.name, key=path.name, files=entries)
    write_atomically(path / MANIFEST, manifest.model_dump_json())
