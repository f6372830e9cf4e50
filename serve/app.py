"""Build targets of `serve run` and `serve deploy`: `serve run serve/ab.yaml` from the checkout."""

from typing import Any

from ray.serve import Application

from supertiny.config import validate
from supertiny.serving.app import build_app
from supertiny.serving.config import ServeConfig


def build(args: dict[str, Any]) -> Application:
    """The student beside its teacher pipeline; `args` are those of `supertiny.serving.config.ServeConfig`."""
    return build_app(validate(ServeConfig, args, "the application's args"))
