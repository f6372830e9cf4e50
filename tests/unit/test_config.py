"""Configs: what is accepted, and what the message says where one is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from supertiny.config import Config, StageConfig, check_kinds, load, validate
from supertiny.errors import ConfigError


class Optimizer(Config):
    """A section."""

    learning_rate: float = Field(1e-5, gt=0)
    """Peak."""
    kind: Literal["plain", "nesterov"] = "plain"
    """A choice."""


class Example(Config):
    """A config with a section, a required key, and a rule between two keys."""

    name: str
    """Required."""
    group_size: int = Field(8, gt=1)
    """Bounded."""
    optimizer: Optimizer = Optimizer()
    """A section."""
    warmup: Optimizer | None = None
    """An optional section."""
    parts: tuple[Literal["a", "b"], ...] = ()
    """Names."""

    @model_validator(mode="after")
    def _names_differ_from_sizes(self) -> Example:
        if self.name == str(self.group_size):
            raise ValueError("name and group_size say the same")
        return self


def test_a_file_gives_what_it_says_and_defaults_for_the_rest(tmp_path: Path) -> None:
    config = load(Example, _file(tmp_path, 'name = "x"\n[optimizer]\nlearning_rate = 1e-3\n'))
    assert config == Example(name="x", group_size=8, optimizer=Optimizer(learning_rate=0.001))


def test_a_misspelt_key_is_named_with_the_file_the_class_and_the_key_that_was_meant(tmp_path: Path) -> None:
    path = _file(tmp_path, 'name = "x"\ngroup_sise = 4\n')
    with pytest.raises(ConfigError) as caught:
        load(Example, path)
    assert str(caught.value) == f"{path} is not a valid Example: group_sise: no such key; did you mean group_size?"


@pytest.mark.parametrize("section", ["optimizer", "warmup"])
def test_a_misspelt_key_of_a_section_is_named_with_its_path(section: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.lerning_rate: no such key; did you mean learning_rate\?"):
        load(Example, None, ["name=x", f"{section}.lerning_rate=1e-3"])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"optimizer": 3}, "optimizer: expected a table of settings, got 3"),
        ({"warmup": "x"}, "warmup: expected a table of settings, got 'x'"),
        ({"name": [1]}, r"name: expected text, got \[1\]"),
        ({"warmup": {"kind": {}}}, r"warmup\.kind: expected text, got {}"),
        ({"parts": "x"}, "parts: expected a list of names, got 'x'"),
        ({"parts": [[1]]}, r"parts: expected a list of names, got \[\[1\]\]"),
    ],
)
def test_what_is_of_another_kind_is_found_before_a_validator_looks_into_it(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}$"):
        check_kinds(Example, values)
    check_kinds(Example, {"name": "x", "group_size": "what pydantic refuses", "optimizer": Optimizer(), "warmup": None, "parts": ["a"]})


def test_a_key_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"zzz: no such key$"):
        load(Example, None, ["name=x", "zzz=1"])


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(Example, None, ["group_size=1", "optimizer.learning_rate=fast", "extra=1"])
    message = str(caught.value)
    assert "name: required" in message
    assert "group_size: Input should be greater than 1, got 1" in message
    assert "optimizer.learning_rate" in message
    assert "got 'fast'" in message
    assert "extra: no such key" in message


def test_a_rule_between_keys_is_told_in_its_own_words() -> None:
    with pytest.raises(ConfigError, match=r"not a valid Example: name and group_size say the same$"):
        validate(Example, {"name": "8"}, "here")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name=plain text", "plain text"),
        ('name="quoted"', "quoted"),
        ("name=a=b", "a=b"),
        ("name=/some/path", "/some/path"),
    ],
)
def test_an_override_is_toml_or_else_plain_text(override: str, expected: str) -> None:
    assert load(Example, None, [override]).name == expected


def test_an_override_reaches_into_sections_and_wins_over_the_file(tmp_path: Path) -> None:
    path = _file(tmp_path, 'name = "x"\n[optimizer]\nlearning_rate = 1e-3\n')
    config = load(Example, path, ["optimizer.learning_rate=0.5", "warmup.learning_rate=0.25", "optimizer.learning_rate=0.75"])
    assert config.optimizer.learning_rate == 0.75
    assert config.warmup == Optimizer(learning_rate=0.25)


@pytest.mark.parametrize("override", ["name", "=x", "name.inner=x", "optimizer..learning_rate=1", "optimizer.=1"])
def test_an_override_that_names_no_setting_is_refused_with_the_override_in_the_message(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Example, None, ["name=x", override])
    assert f"--set {override}: " in str(caught.value)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"jobs/none\.toml: no such config file \(looked from {tmp_path}\)"):
        load(Example, "jobs/none.toml")


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"name = 1\nname = 2"])
def test_a_file_that_is_not_toml_is_a_config_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml is not TOML"):
        load(Example, path)


def test_a_folder_is_not_a_config_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Example, tmp_path)


def test_a_loaded_config_never_changes() -> None:
    config = Example(name="x")
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "y"  # type: ignore[misc]


def test_where_outputs_go_and_which_revision_made_them_are_not_settings() -> None:
    here, there = StageConfig(name="a", run_root="/here", git_revision="1"), StageConfig(name="a", run_root="/there", git_revision="2")
    assert here.settings() == there.settings()
    assert here.settings() != StageConfig(name="b", run_root="/here", git_revision="1").settings()


def _file(folder: Path, text: str) -> Path:
    path = folder / "example.toml"
    path.write_text(text)
    return path
