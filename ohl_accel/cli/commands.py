"""Every command with its arguments; what it does is in the package that it calls.

The packages are imported inside `run_command`, so that an interrupt or a missing dependency during a slow import is
handled as in any other step of a command.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import ohl_accel.cli.paper  # noqa: F401  registers its commands
from ohl_accel.cli.app import Config, Overrides, Processes, RecipeArgument, app, check_early, end, names
from ohl_accel.cli.ending import run_command
from ohl_accel.cli.launching import launch
from ohl_accel.errors import UserError
from ohl_accel.recipe.packaged import ABLATIONS, LAUNCH_CONFIGS, RECIPES, first_comment, packaged
from ohl_accel.run_folder.atomic import write_text

hub = typer.Typer(
    help="Publish runs on the Hugging Face Hub, and download published ones.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(hub, name="hub")


@app.command()
def search(
    recipe: RecipeArgument, overrides: Overrides = None, processes: Processes = None, config: Config = None
) -> None:
    """Learn an augmentation policy while training the network."""

    def command() -> None:
        check_early(recipe, overrides)
        if processes is not None or config is not None:
            launch("search", [recipe, *(overrides or ())], processes, config)
        from ohl_accel.engine.search import search

        search(recipe, overrides or ())

    end(run_command(command))


@app.command()
def train(
    recipe: RecipeArgument, overrides: Overrides = None, processes: Processes = None, config: Config = None
) -> None:
    """Train a network with a fixed augmentation policy (augment.policy=NAME)."""

    def command() -> None:
        check_early(recipe, overrides)
        if processes is not None or config is not None:
            launch("train", [recipe, *(overrides or ())], processes, config)
        from ohl_accel.engine.train import train

        train(recipe, overrides or ())

    end(run_command(command))


@app.command()
def evaluate(
    network: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_HUB_ID", help="A run folder, or the Hub id of a network that timm can load."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="data.key=value", help="Values of the recipe's data section."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Data to use instead of the recipe's: a Hub dataset, a folder or a file."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split to use instead of the recipe's test split.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the numbers to this file.")
    ] = None,
) -> None:
    """Score a trained network on a split: top-1, top-5, loss, and a table per class."""

    def command() -> None:
        from ohl_accel.engine.evaluate import evaluate, show

        evaluation = evaluate(network, revision=revision, data=data, split=split, overrides=overrides or ())
        show(evaluation, network)
        if json_file is not None:
            try:
                write_text(json_file, json.dumps(evaluation.document(), indent=2) + "\n")
            except OSError as error:
                raise UserError(f"--json {json_file} cannot be written: {error.strerror}") from None

    end(run_command(command))


@app.command()
def compare(
    recipe: RecipeArgument,
    policies: Annotated[str, typer.Option(help="Names, separated by commas.")],
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Number of seeds.")] = 5,
    first_seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seeds are N, N + 1, ...: not those that chose settings.")
    ] = 0,
    reference: Annotated[
        str | None, typer.Option(help="The policy to compare with (default: the first of --policies).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder (default: runs/compare-RECIPE).")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Parallel runs (default: one per GPU, or as many as the cores allow)."
        ),
    ] = None,
) -> None:
    """Compare policies fairly: the same recipe, paired seeds, final test accuracy.

    Policies: none, cutout, mixup, uniform, autoaugment, randaugment, trivialaugment, a policy.json, a run folder, a
    Hub id, zoo:NAME; ohl, population, search:ESTIMATOR, uniform-best-of-n, NAME-fresh, NAME-compute-matched.
    """

    def command() -> None:
        check_early(recipe, overrides)
        from ohl_accel.comparison import compare

        compare(
            recipe,
            [name.strip() for name in policies.split(",") if name.strip()],
            seeds,
            overrides=overrides or (),
            reference=reference,
            out=out,
            jobs=jobs,
            first_seed=first_seed,
        )

    end(run_command(command, "the same command continues where it stopped"))


@app.command()
def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN [RUN]", help="A run folder, finished or in progress; or two, side by side."
        ),
    ] = None,
    watch: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Redraw every SECONDS until the run is finished.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="A policy's name on the Hub, its file, or its run folder.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="An image to apply the policy to.")] = None,
    draws: Annotated[int, typer.Option(help="Number of random augmentations, 1 to 100.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the random augmentations.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The HTML file (default: RUN/report.html, side_by_side.html or policy_gallery.html)."
        ),
    ] = None,
) -> None:
    """Draw the report page of a run, of two runs side by side, or what a policy does to an image: one HTML file."""
    if watch is not None and not watch > 0:
        raise typer.BadParameter(f"--watch {watch:g}: must be above 0 seconds")

    def draw_gallery(policy: str, image: Path) -> None:
        from ohl_accel.report.write import write_gallery

        path = output or Path("policy_gallery.html")
        write_gallery(policy, image, path, draws, seed)
        print(path)

    def draw_report(run: Path) -> None:
        from ohl_accel.report.write import write_report

        try:
            write_report(run, print, output, watch)
        except KeyboardInterrupt:
            print("stopped")

    def draw_beside(first: Path, second: Path) -> None:
        from ohl_accel.report.write import write_beside

        path = output or Path("side_by_side.html")
        write_beside(first, second, path)
        print(path)

    folders = runs or []
    if len(folders) == 1 and policy is None and image is None:
        end(run_command(lambda: draw_report(folders[0])))
    if len(folders) == 2 and policy is None and image is None and watch is None:
        end(run_command(lambda: draw_beside(*folders)))
    if not folders and policy is not None and image is not None:
        name, file = policy, image
        end(run_command(lambda: draw_gallery(name, file)))
    raise typer.BadParameter("give a run folder, two without --watch, or --policy and --image")


@hub.command()
def push(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    repo: Annotated[str, typer.Argument(help="user/name; created if missing.")],
    policy_only: Annotated[bool, typer.Option("--policy-only", help="Leave out the network.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    gated: Annotated[
        str | None, typer.Option(metavar="auto|manual", help="Users must request access to download.")
    ] = None,
    tags: Annotated[
        list[str] | None, typer.Option(metavar="TAG...", help="Additional tags of the model card.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="In the Hub's spelling, such as apache-2.0.")] = None,
    version: Annotated[str | None, typer.Option(help="A git tag for the commit, such as v1.")] = None,
    patience: Annotated[
        float | None, typer.Option(help="Total seconds to wait between attempts before giving up.")
    ] = None,
) -> None:
    """Publish a run folder in one commit; defaults come from the run's recipe."""
    given = {
        "repo": repo,
        "policy_only": policy_only or None,
        "private": private or None,
        "gated": gated,
        "tags": tags or None,
        "license": license,
        "version": version,
        "patience": patience,
    }

    def command() -> None:
        from ohl_accel.hub.contents import Finished
        from ohl_accel.hub.transfer import push

        changes = {name: value for name, value in given.items() if value is not None}
        section = Finished.read(run).recipe.with_values(hub=changes).hub
        if section.license is None:
            section = section.model_copy(update={"license": _ask_for_license()})
        print(f"published: {push(run, section, _say)}")

    end(run_command(command, "the same command begins again"))


@hub.command()
def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO[@REVISION]", help="user/name, or user/name@revision.")],
    folder: Annotated[Path, typer.Argument(help="Created if missing; must be empty.")],
) -> None:
    """Download a published run into a folder."""

    def command() -> None:
        from ohl_accel.hub.transfer import pull

        name, _, revision = repo.partition("@")
        for file in pull(name, revision or None, folder, _say):
            print(folder / file)

    end(run_command(command, "the same command begins again"))


@app.command()
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="The one to show.", autocompletion=names),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Copy it to a file that you can edit.")
    ] = None,
) -> None:
    """List the recipes, ablations and launch configurations that come with the package, show one, or copy it."""

    def command() -> None:
        everything = {**packaged(LAUNCH_CONFIGS), **packaged(ABLATIONS), **packaged(RECIPES)}
        if name is None:
            if save is not None:
                raise UserError("--save needs the name of what to copy")
            kinds = {"Recipes": RECIPES, "Ablations (ohl-accel sweep)": ABLATIONS}
            for title, kind in {**kinds, "Launch configurations (--config)": LAUNCH_CONFIGS}.items():
                print(f"{title}:")
                for entry, file in packaged(kind).items():
                    print(f"  {entry:<21} {first_comment(file)}")
            return
        if name not in everything:
            raise UserError(f"{name} does not come with the package; available: {', '.join(everything)}")
        text = everything[name].read_text(encoding="utf-8")
        if save is None:
            print(text, end="")
            return
        try:
            with save.open("x", encoding="utf-8") as copy:
                copy.write(text)
        except OSError as error:
            raise UserError(f"--save {save} cannot be written: {error.strerror}") from None
        print(save)

    end(run_command(command))


@app.command()
def policies(
    name: Annotated[str | None, typer.Argument(metavar="zoo:NAME", help="The one to show.")] = None,
) -> None:
    """List the learned policies that come with the package, with what they were shown to be worth, or show one."""

    def command() -> None:
        from ohl_accel.policy import Policy, zoo

        if name is not None and not name.startswith(zoo.PREFIX):
            raise UserError(f"{name}: policies that come with the package are named zoo:NAME")
        known = [zoo.PREFIX + one for one in zoo.names()] if name is None else [name]
        if not known:
            print("no learned policies come with this version")
        try:
            for one in known:
                policy = Policy.from_pretrained(one)
                gain = zoo.gain_of(policy.provenance)
                print(f"{one}\n  {gain}")
                if name is not None:
                    print(f"  {policy}\n  measured by: {gain.command}")
        except ValueError as error:
            raise UserError(str(error)) from None

    end(run_command(command))


@app.command()
def export(
    policy: Annotated[
        str, typer.Argument(metavar="POLICY", help="A run folder, a policy.json, a Hub id or zoo:NAME.")
    ],
    form: Annotated[str, typer.Option("--format", help="csv, pillow or torchvision.")] = "csv",
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file to write (default: standard output).")
    ] = None,
) -> None:
    """Write a policy as a plain table, or as a Python file of Pillow's or torchvision's calls."""

    def command() -> None:
        from ohl_accel.policy.export import export
        from ohl_accel.report.gallery import load_policy

        text = export(load_policy(policy), form)
        if output is None:
            print(text, end="")
            return
        try:
            write_text(output, text)
        except OSError as error:
            raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
        print(output)

    end(run_command(command))


def run(command: str | None, argv: Sequence[str]) -> int:
    """Run a command line, whose first word is the command unless `command` is given; returns the exit code."""
    arguments = _repeat_option([*argv] if command is None else [command, *argv], "--tags")
    program = "ohl-accel" if command is None else "python -m ohl_accel"
    try:
        typer.main.get_command(app).main(arguments, prog_name=program)
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 1
    raise AssertionError("a command ends by SystemExit")


def _repeat_option(argv: Sequence[str], option: str) -> list[str]:
    """`--tags a b` as `--tags a --tags b`, so that an option with several values can be written either way."""
    repeated: list[str] = []
    within = False
    for word in argv:
        if within and not word.startswith("-") and repeated[-1] != option:
            repeated.append(option)
        within = word == option or (within and not word.startswith("-"))
        repeated.append(word)
    return repeated


def _ask_for_license() -> str | None:
    """The license to publish under: asked for on a terminal; elsewhere a warning, and None."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        question = "License of what is published, in the Hub's spelling, such as apache-2.0 (empty: none)"
        return str(typer.prompt(question, default="", show_default=False, err=True)).strip() or None
    from ohl_accel.hub.access import NO_LICENSE

    _say(f"warning: {NO_LICENSE}")
    return None


def _say(text: str) -> None:
    """Show progress on standard error, apart from the command's output."""
    print(text, file=sys.stderr, flush=True)
