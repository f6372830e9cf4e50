"""The rules of the tree, as tests."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest
import yaml

from supertiny.config import Config, PlacedConfig, load

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "platform" / "supertiny"
MODULES = sorted(PACKAGE.rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))
CONFIGS = sorted((ROOT / "jobs" / "configs").rglob("*.toml"))
YAMLS = [ROOT / ".pre-commit-config.yaml", *sorted(path for top in ("serve", "cluster") for path in (ROOT / top).rglob("*.yaml"))]
LIGHT = [
    *(PACKAGE / f"{name}.py" for name in ("errors", "config", "cli", "records", "revision", "jobserver")),
    *sorted([*PACKAGE.glob("*/config.py"), *PACKAGE.glob("*/*_config.py")]),
]
LIGHT_LIBRARIES = {"supertiny", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
JOB_OF_CONFIG = {"heal": "distill", "on_policy": "distill", **dict.fromkeys(("awq", "gptq", "w8a8", "fp8"), "quantize")}
"""Configs named after what they make; any other is named after its job, up to the first dash."""
HOMES = {
    "ray.data": ("platform/supertiny/rollout/pipeline.py",),
    "ray.serve": ("platform/supertiny/serving/", "serve/"),
    "ray.train": ("platform/supertiny/train/",),
    "vllm": ("platform/supertiny/llm/vllm.py", "platform/supertiny/serving/models.py"),
    "trl": ("platform/supertiny/train/",),
    "deepspeed": ("platform/supertiny/train/",),
    "llmcompressor": ("platform/supertiny/compress/quantize.py",),
}


def test_the_source_root_is_not_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()  # it would shadow the standard library's platform


def test_every_folder_of_the_package_has_an_empty_init() -> None:
    folders = {path.parent for path in MODULES}
    assert [_name(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
    assert [_name(path) for path in MODULES if path.name == "__init__.py" and path.read_text()] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_has_350_lines_and_a_function_60_lines_of_code_unless_it_says_why(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 350 or "long because" in text
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert {each.name: lines for each in functions if (lines := _lines_of_code(each, text)) > 60} == {}


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_is_imported_in_its_home_only(library: str) -> None:
    sources = [*MODULES, *JOBS, *sorted((ROOT / "serve").glob("*.py"))]
    users = {_name(path) for path in sources if any(_is_within(name, library) for name in _imports(path))}
    assert {user for user in users if not user.startswith(HOMES[library])} == set()


def test_light_modules_load_nothing_but_pydantic_and_the_standard_library() -> None:
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in LIGHT]
    assert _libraries_of(f"import {', '.join(names)}") <= LIGHT_LIBRARIES


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_a_dry_run_loads_nothing_heavy(job: Path) -> None:
    configs = [f"--config={path}" for path in CONFIGS if _job_of(path) == job][:1]
    run = f"import sys, runpy; sys.argv = {['job', '--dry-run', *configs]}\n"
    run += f"try: runpy.run_path({str(job)!r}, run_name='__main__')\nexcept SystemExit as end: assert end.code == 0"
    assert _libraries_of(run) <= LIGHT_LIBRARIES


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_config_loads_for_its_job(path: Path) -> None:
    assert load(_config_class(_job_of(path)), path)


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_a_job_is_thin_and_shows_its_command(job: Path) -> None:
    text = job.read_text()
    assert len(text.splitlines()) <= 35
    assert f"python jobs/{job.name}" in (ast.get_docstring(ast.parse(text)) or "")
    assert "run_job(" in text
    assert "argparse" not in text


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_a_job_whose_config_has_a_place_works_there(job: Path) -> None:
    assert issubclass(_config_class(job), PlacedConfig) == ("run_at_place(" in job.read_text())


def test_a_job_has_exactly_three_flags() -> None:
    printed = subprocess.run([sys.executable, str(JOBS[0]), "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", printed, re.MULTILINE)) == {"--help", "--config", "--set", "--dry-run"}


def test_every_setting_says_what_it_means() -> None:
    modules = [importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)) for path in LIGHT]
    configs = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, Config)}
    silent = {f"{kind.__name__}.{name}" for kind in configs for name, field in kind.model_fields.items() if not field.description}
    assert silent == set()
    assert {kind.__name__ for kind in configs if not kind.__doc__} == set()


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_every_yaml_is_made_of_mappings(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    assert [document for document in documents if not isinstance(document, dict)] == []


def test_tests_use_fakes_and_not_mocks() -> None:
    assert [_name(path) for path in (ROOT / "tests").rglob("*.py") if any(_is_within(name, "unittest") for name in _imports(path))] == []


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_every_link_between_documents_leads_somewhere(path: Path) -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()) if "://" not in target]
    assert [target for target in targets if target and not (path.parent / target).exists()] == []


def test_a_warning_that_our_own_modules_cause_is_an_error() -> None:
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn_explicit("ours", UserWarning, "made.py", 1, module="supertiny.rollout.pipeline")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef, text: str) -> int:
    """Lines of a function without its docstring, comments and blank lines; 0 where a comment says why it is long."""
    body = text.splitlines()[function.lineno - 1 : function.end_lineno]
    docstring = len((ast.get_docstring(function, clean=False) or "").splitlines())
    code = [line for line in body if line.strip() and not line.strip().startswith("#")]
    return 0 if any("# long because" in line for line in body) else len(code) - docstring


@cache
def _imports(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, anywhere in it; `from ray import data` is `ray.data`."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def _is_within(name: str, library: str) -> bool:
    return name == library or name.startswith(f"{library}.")


def _libraries_of(code: str) -> set[str]:
    """Libraries that a fresh interpreter loads for some code, beyond those that it starts with."""
    libraries = _top_level_names(code) - _top_level_names("") - set(sys.stdlib_module_names)
    return {name for name in libraries if not name.startswith("_sysconfigdata")}


@cache
def _top_level_names(code: str) -> set[str]:
    report = "\nimport sys, json; print('\\n' + json.dumps([name.partition('.')[0] for name in sys.modules]))"
    ran = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(ran.stdout.splitlines()[-1]))


def _job_of(config: Path) -> Path:
    stage = config.stem.partition("-")[0]
    return ROOT / "jobs" / f"{JOB_OF_CONFIG.get(stage, stage)}.py"


def _config_class(job: Path) -> type[Config]:
    kind: type[Config] = get_type_hints(_load_module(job).main)["config"]
    return kind


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"job_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
