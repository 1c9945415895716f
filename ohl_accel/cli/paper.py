"""The commands around the paper's tables and figures: what a run costs, sweeps, Figure 4."""

from pathlib import Path
from typing import Annotated

import typer

from ohl_accel.cli.app import Overrides, RecipeArgument, app, check_early, end, recipe_names
from ohl_accel.cli.ending import run_command
from ohl_accel.errors import UserError
from ohl_accel.recipe import Recipe


@app.command()
def sweep(
    grid: Annotated[
        str | None,
        typer.Argument(
            metavar="ABLATION", help="A file, or one that comes with the package, such as policy_lr."
        ),
    ] = None,
    overrides: Overrides = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="section.key=[VALUES]", help="Instead of an ablation: what to vary; repeatable."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="The recipe to vary (default: the ablation's).", autocompletion=recipe_names),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Number of seeds.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seeds are N, N + 1, ...")] = 0,
    out: Annotated[Path | None, typer.Option(help="A folder (default: runs/sweep-ABLATION).")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Parallel runs (default: one per GPU, or as many as the cores allow)."
        ),
    ] = None,
) -> None:
    """Run a search for each value of a setting and each seed, and draw the accuracies with error bars."""

    def command() -> None:
        words, rest = [*(over or ())], [*(overrides or ())]
        if grid is not None and words:
            rest.insert(0, grid)  # the first word is an override: the grid is given by --over
        elif grid is not None:
            words = [grid]
        if not words:
            raise UserError("give an ablation, or what to vary: --over 'outer.lr=[0, 0.05]'")
        from ohl_accel.comparison.sweep import sweep

        sweep(words, rest, recipe=recipe, seeds=seeds, first_seed=first_seed, out=out, jobs=jobs)

    end(run_command(command, "the same command continues where it stopped"))


@app.command()
def cost(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="Processes (GPUs) that it runs on.")] = 1,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="Of training with a fixed policy instead of the search.")
    ] = False,
    measured: Annotated[
        bool, typer.Option("--measure", help="Run a few steps here, on one process, and time them.")
    ] = False,
) -> None:
    """Say what a run would cost: iterations, operations, memory, hours and price on named GPUs."""

    def command() -> None:
        check_early(recipe, overrides)
        from ohl_accel.cost import estimate, facts_of, lines
        from ohl_accel.engine.dry import measure
        from ohl_accel.engine.search import search
        from ohl_accel.engine.train import for_one_network, train

        read = Recipe.load(recipe, overrides or ())
        if fixed:
            read = for_one_network(read)
        found = estimate(read, facts_of(read), processes, learn=not fixed)
        for name, text in [("cost", found.headline), *lines(found)]:
            print(f"{name:<12}{text}")
        if measured:
            pace = measure(found, train if fixed else search)
            print(
                f"{'measured':<12}{pace.inner_step:.3g} s for an inner step, {pace.outer_step(found):.3g} s for an "
                f"outer step, {pace.hours(found):.2g} hours in all on one process of this machine"
            )

    end(run_command(command))


@app.command()
def figure4(
    run: Annotated[Path, typer.Argument(help="A run folder, finished or in progress.")],
    output: Annotated[Path | None, typer.Option(help="The PNG file (default: RUN/figure4.png).")] = None,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Show every N-th outer step.")] = 1,
) -> None:
    """Draw Figure 4 of a run: the probability of every element over training, with what noise explains."""

    def command() -> None:
        from ohl_accel.report.figure_4 import write_figure_4

        print(write_figure_4(run, output or run / "figure4.png", every))

    end(run_command(command))
