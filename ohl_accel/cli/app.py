"""The command line's application, and what its commands have in common."""

import os
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from ohl_accel.recipe import Recipe
from ohl_accel.recipe.packaged import LAUNCH_CONFIGS, RECIPES, packaged

_SETTINGS = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="ohl-accel",
    help="Learn an augmentation policy while the network trains (OHL-Auto-Aug).",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=_SETTINGS,
)


def recipe_names(incomplete: str) -> list[str]:
    """Names of recipes that begin with a text, for completion."""
    return [name for name in packaged(RECIPES) if name.startswith(incomplete)]


def config_names(incomplete: str) -> list[str]:
    """Names of launch configurations that begin with a text, for completion."""
    return [name for name in packaged(LAUNCH_CONFIGS) if name.startswith(incomplete)]


def names(incomplete: str) -> list[str]:
    """Names of all that comes with the package and begins with a text, for completion."""
    return recipe_names(incomplete) + config_names(incomplete)


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML file, or the name of a recipe that comes with the package, such as digits.",
        autocompletion=recipe_names,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="section.key=value", help="Values that replace the recipe's."),
]
Processes = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Start N processes on this machine (with accelerate launch)."),
]
Config = Annotated[
    str | None,
    typer.Option(
        help="Start the processes of this Accelerate configuration: a file, or a name such as node_8gpu.",
        autocompletion=config_names,
    ),
]


def check_early(recipe: str, overrides: Sequence[str] | None) -> None:
    """Check a recipe before anything heavy is imported; launched processes check it together instead."""
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        Recipe.load(recipe, overrides or ())


def end(code: int) -> NoReturn:
    """End a command with an exit code."""
    raise typer.Exit(code)
