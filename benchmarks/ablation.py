"""What each ingredient is worth: variants of the chain's stages x seeds, each trained and evaluated, and a table of paired differences.

    python benchmarks/ablation.py benchmarks/ablations/transfer-assistant.toml --folder runs/ablation     # make what is missing, then print
    python benchmarks/ablation.py benchmarks/ablations/transfer-assistant.toml --folder runs/ablation --table   # print what there is
    python benchmarks/ablation.py benchmarks/ablations/transfer-snips.toml --folder runs/ablation \\
      --set 'pipeline.task.options.root="/folder/with/snips/and/clinc_oos"' --take teacher=/runs/snips/teacher --take base=/runs/snips/base

An experiment's file says what its variants are, with their sizes: `transfer-*.toml` (SFT, and each ingredient of the transfer on top of
those before it), `chain-*.toml` (forward KL and then RL, beside SFT) and `compress-*.toml` (cuts along each axis before and after
healing, and formats), which take their students from the transfer's runs of the same seed. The stages are those of `jobs/`, on a Ray of
their own; a seed changes what `Experiment.seeds` says.

Runs are made one after the other, some one to three minutes each on two cores, seed by seed. Each leaves a file in
`<folder>/<name>/results`, written when it is done; killed and started again, the script goes on with the run that was killed from its last
checkpoint. A run whose settings have changed is made again. One that fails is named at the end, and the exit status is 1.

A difference is paired by seed and by prompt. Its first interval (Student's t, 95 %) is over seeds: what another training may give on these
prompts. The second is over prompts, of the mean over seeds: what other prompts may give. It is called real where neither has 0. Nothing
is corrected for the number of comparisons. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from ablations.experiment import Experiment
from ablations.runs import Result, make_runs, missing_runs, result_of, runs, stages_of_the_chain
from ablations.table import numbers, render

from supertiny.cli import configure_logging, exit_status
from supertiny.config import load, validate
from supertiny.errors import ConfigError
from supertiny.pipeline.local_cluster import local_cluster

log = logging.getLogger("ablation")


def main() -> int:
    """The exit status that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="TOML file")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"), help="of all experiments (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="make nothing, print what these flags have made")
    parser.add_argument("--seeds", type=int, nargs="+", help="others than those of the file")
    parser.add_argument("--variants", nargs="+", default=[], help="make these, and those that they are made from, alone")
    parser.add_argument("--take", action="append", default=[], metavar="NAME=PATH", help="an artifact made elsewhere; repeatable")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one setting; repeatable")
    parser.add_argument("--minutes", type=float, help="begin no run after so many")
    flags = parser.parse_args()
    configure_logging()
    try:
        return exit_status(lambda: ablate(read(flags), flags))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def ablate(experiment: Experiment, flags: argparse.Namespace) -> int:
    """Make what is missing, unless only the table is wanted, and print; 1 if a run failed."""
    folder = flags.folder.expanduser().absolute()
    failed = [] if flags.table else make(experiment, folder, flags.variants, flags.minutes)
    results: dict[str, dict[int, Result]] = {name: {} for name in experiment.names}
    for run in runs(experiment, folder):
        if result := result_of(run):
            results[run.variant.name][run.seed] = result
    print(render(experiment, results), *(f"failed: {each}" for each in failed), numbers(experiment, results), sep="\n")
    return 1 if failed else 0


def read(flags: argparse.Namespace) -> Experiment:
    """The experiment as the command line changes it; raises ConfigError."""
    experiment = load(Experiment, flags.experiment, flags.set)
    taken = dict(each.partition("=")[::2] for each in flags.take)
    values = experiment.model_dump()
    values["take"] = {**experiment.take, **{name: str(Path(path).expanduser()) for name, path in taken.items()}}
    values["seeds"] = flags.seeds or experiment.seeds
    if unknown := set(flags.variants) - set(experiment.names):
        raise ConfigError(f"--variants {', '.join(sorted(unknown))}: not in {flags.experiment}, which has {', '.join(experiment.names)}")
    return validate(Experiment, values, str(flags.experiment))


def make(experiment: Experiment, folder: Path, wanted: list[str], minutes: float | None) -> list[str]:
    """Make what is missing on a Ray of one's own; returns what failed."""
    missing = missing_runs(experiment, folder, wanted)
    log.info("%s: %d runs are missing", experiment.name, len(missing))
    if not missing:
        return []
    with local_cluster(experiment.inputs(folder).num_cpus) as cluster:
        import ray  # reads the token's settings, which the cluster's start has put into the environment

        ray.init(cluster.address, logging_level=logging.WARNING)
        try:
            return make_runs(experiment, missing, folder, stages_of_the_chain(), None if minutes is None else 60 * minutes)
        finally:
            ray.shutdown()


if __name__ == "__main__":
    raise SystemExit(main())
