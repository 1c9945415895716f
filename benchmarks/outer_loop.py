"""A bench for outer loops, with known answers: what does an estimator find, how soon, and what is it worth?

    python -m benchmarks.outer_loop simulator --estimator reinforce --estimator reinforce,lr=0.2 --seeds 20
    python -m benchmarks.outer_loop planted --problem digits-rotated --estimator reinforce --seeds 3
    python -m benchmarks.outer_loop planted --problem cifar10-inverted --data PATH --estimator reinforce --seeds 3
    python -m benchmarks.outer_loop real sign_digits --data PATH --static colour,geometry --seeds 2
    python -m benchmarks.outer_loop real cifar10_reduced --data PATH --estimator reinforce --less geometry --seeds 5

simulator: no network; a reward surface with delay, history and noise, calibrated to reduced CIFAR-10 (seconds a run).
planted: images whose held-out and test copies are changed in a known way (a minute or two a run on one core).
real: static policies by family, to find the oracle by hand; then estimators, through `ohl_accel.compare`.

An estimator is NAME,key=value,...: a name or a class as in `outer.estimator`; lr, betas and average are fields of the
recipe's outer section, all other keys are outer.estimator_args. Results are written as Markdown and JSON.
"""

import argparse
import dataclasses
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import yaml

from benchmarks.outer_loop_calibration import calibration
from benchmarks.outer_loop_planted import PROBLEMS, Planted
from benchmarks.outer_loop_real import Real, family_masses
from benchmarks.outer_loop_shared import FAMILIES, Contestant, Known, Page, Trials
from benchmarks.outer_loop_simulator import SURFACES, Settings, trials_of
from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.operations.space import BUILT_IN

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a part, write its page and print it; 0, or 2 for what cannot work, 1 if runs failed."""
    options = parser().parse_args(arguments)
    command = shlex.join(
        ["python", "-m", "benchmarks.outer_loop", *(sys.argv[1:] if arguments is None else arguments)]
    )
    try:
        page = options.part(options, command)
        page.write(options.result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(page.markdown())
    print(f"{options.result} and beside it {options.result.with_suffix('.json').name}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m benchmarks.outer_loop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = top.add_subparsers(required=True, metavar="simulator|planted|real")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--estimator",
        action="append",
        default=[],
        metavar="NAME,key=value,...",
        help="a contestant; repeat for more",
    )
    common.add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    common.add_argument("--first-seed", type=int, default=0, help="the first one (default: %(default)s)")
    common.add_argument("--result", type=Path, help="the Markdown file (default: in benchmarks/results/)")

    one = parts.add_parser("simulator", parents=[common], help="no network, seconds a run")
    one.add_argument(
        "--surface", action="append", choices=SURFACES, help="repeat for more (default: families)"
    )
    one.add_argument("--space", default="paper", choices=sorted(BUILT_IN), help="of the policies")
    one.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE",
        help="of the simulated run: "
        + ", ".join(f"{each.name}={each.default}" for each in dataclasses.fields(Settings)),
    )  # fmt: skip
    one.set_defaults(part=simulator_page)

    two = parts.add_parser("planted", parents=[common], help="known answers on images, a minute or two a run")
    two.add_argument(
        "--problem", action="append", choices=list(PROBLEMS), help="repeat for more (default: digits-rotated)"
    )
    two.add_argument("--data", help="CIFAR-10: a folder of parquet files, or a Hub id")
    two.add_argument(
        "--images", type=int, nargs=3, default=(1000, 1000, 2000), metavar=("TRAIN", "HELDOUT", "TEST"),
        help="of CIFAR-10 (default: 1000 1000 2000)",
    )  # fmt: skip
    two.add_argument(
        "--threshold", type=float, default=3.0, help="factor that counts as found (default: %(default)s)"
    )
    two.add_argument("--fresh", action="store_true", help="also train anew with every learned policy")
    two.add_argument(
        "--out", type=Path, help="keep the runs here, and continue there (default: a temporary folder)"
    )
    two.add_argument("override", nargs="*", help="section.key=value, of the recipe of all runs")
    two.set_defaults(part=planted_page)

    three = parts.add_parser("real", parents=[common], help="the oracle by hand, then estimators")
    three.add_argument("recipe", help="a file, or a name such as sign_digits")
    three.add_argument("--data", help="data.path of the recipe")
    three.add_argument(
        "--static", default="colour,geometry", metavar="FAMILIES,...",
        help=f"policies that apply only these; families are {', '.join(FAMILIES)}, joined by +; colour is enhance+tone "
        "(default: %(default)s; '' for none)",
    )  # fmt: skip
    three.add_argument(
        "--policies", default="", help="further ones of ohl_accel.compare, such as trivialaugment"
    )
    direction = three.add_mutually_exclusive_group()
    direction.add_argument("--less", metavar="FAMILIES", help="the known answer: these become less probable")
    direction.add_argument("--more", metavar="FAMILIES", help="the known answer: these become more probable")
    three.add_argument(
        "--threshold", type=float, default=2.0, help="factor that counts as found (default: %(default)s)"
    )
    three.add_argument("--out", type=Path, help="the folder of the runs (default: runs/outer-loop-RECIPE)")
    three.add_argument("--jobs", type=int, default=1, help="parallel runs (default: %(default)s)")
    three.add_argument("override", nargs="*", help="section.key=value, of the recipe of all runs")
    three.set_defaults(part=real_page)
    return top


def simulator_page(options: argparse.Namespace, command: str) -> Page:
    """Simulated searches on every surface asked for."""
    options.result = options.result or RESULTS / "outer_loop_simulator.md"
    settings, contestants = settings_of(options.set), contestants_of(options)
    sections: dict[str, tuple[Known | None, Trials]] = {}
    for kind in options.surface or ["families"]:
        sections[kind] = trials_of(contestants, settings, kind, seeds_of(options), BUILT_IN[options.space])
    about = [
        "No network is trained: `benchmarks/outer_loop_simulator.py` says what stands in for it (surface, delay, "
        "history, noise). Every estimator runs through its real interface, on operations sampled by its policies. "
        "`network` and `fresh training` are true accuracies, without the noise of a test split; fresh trainings of a "
        "seed share their luck.",
    ]
    after = []
    if "families" in sections and options.space == "paper":
        text = "How the simulation compares with what was measured (main effects of transforms are in the module):"
        after = ["## Calibration", "", text, "", *calibration(settings, sections["families"][1])]
    return Page("Outer loops in simulation", about, sections, dataclasses.asdict(settings), command, after)


def planted_page(options: argparse.Namespace, command: str) -> Page:
    """Searches on every planted problem asked for."""
    options.result = options.result or RESULTS / "outer_loop_planted.md"
    contestants = contestants_of(options)
    datasets.disable_progress_bars()
    sections: dict[str, tuple[Known | None, Trials]] = {}
    settings: dict[str, Any] = {"overrides": options.override}
    with nullcontext(options.out) if options.out else tempfile.TemporaryDirectory() as folder:
        for name in options.problem or ["digits-rotated"]:
            problem = PROBLEMS[name]
            splits = problem.splits(options.data, tuple(options.images))
            known = problem.known(options.threshold)
            runs = Planted(problem, splits, Path(folder) / name, tuple(options.override))
            sections[name] = known, runs.trials(contestants, seeds_of(options), known, options.fresh)
            settings[name] = {
                "recipe": problem.recipe,
                "images": {part: len(rows) for part, rows in splits.items()},
            }
    about = [
        "Held-out and test images are changed, training images are not; the operations that change training images "
        "in the same way are the answer. `oracle`: training with a policy that applies them half of the time.",
    ]
    return Page("Outer loops on planted problems", about, sections, settings, command)


def real_page(options: argparse.Namespace, command: str) -> Page:
    """The oracle by hand, and searches, by one recipe."""
    stem = Path(options.recipe).stem
    options.result = options.result or RESULTS / f"outer_loop_{stem}.md"
    direction = options.less or options.more
    known = Known.family(direction, bool(options.more), options.threshold) if direction else None
    data = [f"data.path={options.data}"] if options.data else []
    real = Real(
        recipe=options.recipe,
        overrides=(*data, *options.override),
        seeds=tuple(seeds_of(options)),
        out=options.out or Path("runs") / f"outer-loop-{stem}",
        static=names_in(options.static),
        fixed=names_in(options.policies),
        contestants=tuple(contestants_of(options)),
        known=known,
        jobs=options.jobs,
    )
    trials = real.run()
    about = [
        f"By `{options.recipe}`, each run by `ohl_accel.compare`. Static policies are uniform over the operations of "
        "the families they are named after, and trained with from the beginning.",
    ]
    after = []
    if real.contestants:
        after = ["## What was learned", ""]
        after += family_masses({one.label: real.policies(one.label) for one in real.contestants})
    settings = {"recipe": options.recipe, "overrides": list(real.overrides), "static": real.static}
    return Page(f"Outer loops on {stem}", about, {stem: (known, trials)}, settings, command, after)


def contestants_of(options: argparse.Namespace) -> list[Contestant]:
    """The contestants that are named, each once.

    Raises:
        UserError: for one that is named twice or has the wrong form.
    """
    found = [Contestant.parse(text) for text in options.estimator]
    repeated = sorted({one.label for one in found if sum(one.label == each.label for each in found) > 1})
    if repeated:
        raise UserError(f"--estimator {repeated[0]} is given more than once")
    return found


def seeds_of(options: argparse.Namespace) -> list[int]:
    """The seeds that are asked for.

    Raises:
        UserError: if there is none.
    """
    if options.seeds < 1 or options.first_seed < 0:
        raise UserError(
            f"--seeds {options.seeds} --first-seed {options.first_seed}: must be from 1, and from 0"
        )
    return list(range(options.first_seed, options.first_seed + options.seeds))


def names_in(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name for name in text.split(",") if name)


def settings_of(pairs: Sequence[str]) -> Settings:
    """The settings of a simulation with some replaced.

    Raises:
        UserError: for an unknown field, or a value of another kind or out of range.
    """
    known = {each.name: each.default for each in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in known:
            raise UserError(f"--set {pair}: unknown; the fields are {', '.join(known)}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        kinds = {int: (int,), float: (int, float), tuple: (list,)}[type(known[name])]
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise UserError(f"--set {pair}: must be like {name}={known[name]}")
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return Settings(**values)
    except ValueError as error:
        raise UserError(f"--set {' '.join(pairs)}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
