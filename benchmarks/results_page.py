"""The tables of docs/results.md that are made from committed data, so that no number is typed by hand.

    python -m benchmarks.results_page                     # writes them
    python -m benchmarks.results_page add RUN CONDITIONS  # first keeps the result of a run of a recipe of the paper

The paper's numbers are in results/paper.json, ours in results/rows/ (of the paper's tables) and in each
results/*/comparison.json and results/*/sweep.json (written by `ohl-accel compare` and `ohl-accel sweep`).
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import replace_between
from ohl_accel.cost import estimate, facts_of
from ohl_accel.recipe import Recipe
from ohl_accel.recipe.packaged import RECIPES, packaged
from ohl_accel.run_folder.files import POLICY_FILE, RESULT_FILE

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "results.md"
BEGIN, END = "<!-- made by `python -m benchmarks.results_page`: begin -->", "<!-- end -->"
COLUMNS = ("none", "cutout", "mixup", "autoaugment", "ohl")
NOT_RUN = "not run"


def write_page() -> None:
    """Replace what is between the marks of docs/results.md."""
    replace_between(PAGE, BEGIN, END, f"\n\n{made()}\n")


def made() -> str:
    """Everything between the marks."""
    parts = [tables_2_and_3(), figures_3_and_4(), table_4()]
    parts += [comparison(file) for file in sorted(RESULTS.glob("*/comparison.json"))]
    parts += [sweep(file) for file in sorted(RESULTS.glob("*/sweep.json"))]
    return "\n".join(parts)


def tables_2_and_3() -> str:
    """The paper's rows, beside ours where there are any."""
    rows = []
    for row in json.loads((RESULTS / "paper.json").read_text())["rows"]:
        for column in COLUMNS:
            if column not in row:
                continue
            file = RESULTS / "rows" / f"{row['recipe']}-{column}.json"
            ours = json.loads(file.read_text()) if file.exists() else {}
            names = ("test_accuracy", "test_top5_accuracy")[: 1 + row[column].count("/")]
            error = "/".join(f"{100 - 100 * ours[name]:.2f}" for name in names) if ours else NOT_RUN
            rows.append(
                [
                    *(row["table"], row["network"], column, row[column], error, ours.get("conditions", "")),
                    f"`{ours.get('command') or command_of(row['recipe'], column)}`",
                ]
            )
    head = ["table", "network", "policy", "paper", "ours", "conditions", "command"]
    note = "In brackets: the paper's own runs, where it quotes others as well. Table 3: top-1 and top-5."
    return section("Tables 2 and 3: test error in %", note, head, rows)


def command_of(recipe: str, column: str) -> str:
    """What runs a row of the tables."""
    if column == "ohl":
        return f"ohl-accel search {recipe}"
    more = " augment.policy_args='{alpha: 0.2}'" if column == "mixup" else ""
    return f"ohl-accel train {recipe} augment.policy={column}{more} run.dir=runs/{recipe}_{column}"


def table_4() -> str:
    """Iterations at batch 1,024."""
    rows = []
    for name in ("cifar10_r18", "imagenet_r50"):
        recipe = Recipe.load(str(packaged(RECIPES)[name]))
        cost = estimate(recipe, facts_of(recipe))
        others = cost.autoaugment_iterations
        assert others is not None
        counted = [f"{number:.3g}" for number in (others, cost.iterations)]
        rows.append(
            [recipe.data.path, *counted, f"{others / cost.iterations:.1f}", f"`ohl-accel cost {name}`"]
        )
    note = "Counted, not run. The paper prints 60 and 24 times."
    return section(
        "Table 4: iterations at batch 1,024", note, ["data", "AutoAugment", "OHL", "ratio", "command"], rows
    )


def figures_3_and_4() -> str:
    """Whether they were run as the paper has them, and the small ones."""
    name = "figures_3_and_4.md"
    rows = [
        [
            f"Figure {number}",
            NOT_RUN,
            f"[with 3 seeds](../benchmarks/results/{name})",
            f"`ohl-accel {command}`",
        ]
        for number, command in (
            ("3(a)", "sweep policy_lr"),
            ("3(b)", "sweep trajectories"),
            ("4", "figure4 runs/cifar10_r18"),
        )
    ]
    head = ["figure", "as in the paper", "small, on reduced CIFAR-10", "command"]
    return section("Figures 3 and 4", "", head, rows)


def comparison(file: Path) -> str:
    """A comparison of policies with equal seeds."""
    document = json.loads(file.read_text())
    rows = [
        [
            *(row["policy"], row["n"], _percent(row["mean"]), f"{row['compute']} x"),
            *(_points(row["difference"]), _interval(row["t_interval"]), row["verdict"]),
        ]
        for row in document["rows"]
    ]
    head = ["policy", "n", "accuracy", "compute", f"to {document['reference']}", "95 % interval", "verdict"]
    return section(f"Comparison {file.parent.name}", conditions(document, file), head, rows)


def sweep(file: Path) -> str:
    """A sweep over a setting."""
    document = json.loads(file.read_text())
    known = {"n", "mean", "interval", "difference", "p_holm", "accuracy"}
    rows = [
        [
            " ".join(f"{field}={value}" for field, value in row.items() if field not in known),
            *(row["n"], _percent(row["mean"]), _interval(row["interval"], "")),
            *(_points(row["difference"]), "" if row["p_holm"] is None else f"{row['p_holm']:.3f}"),
        ]
        for row in document["rows"]
    ]
    figure = f"![test accuracy](../benchmarks/results/{file.parent.name}/sweep.png)"
    head = ["setting", "n", "accuracy", "95 % interval", "to the first", "p (Holm)"]
    about = f"{conditions(document, file)}\n\n{figure}"
    return section(f"Sweep {file.parent.name}: {document['label']}", about, head, rows)


def conditions(document: Mapping[str, Any], file: Path) -> str:
    """Hardware, version of torch and command of a document; a page beside its folder has more."""
    page = file.parent.with_suffix(".md")
    more = f" Conditions: [{page.name}](../benchmarks/results/{page.name})." if page.exists() else ""
    where = f"{document['device']}, torch {document['versions']['torch']}"
    return f"Final test accuracy in %; {where}.{more} Command: `{document['command']}`"


def section(title: str, about: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A heading, a text and a Markdown table."""
    lines = [f"## {title}", "", *([about, ""] if about else [])]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([*lines, ""])


def add(folder: Path, conditions: str) -> Path:
    """Keep the result and the recipe of a finished run of one of the paper's recipes; returns the result's file.

    Raises:
        SystemExit: if it is not finished, or not of one of those recipes.
    """
    if not (folder / RESULT_FILE).is_file():
        raise SystemExit(f"{folder} has no {RESULT_FILE}: the run is not finished")
    recipe = Recipe.load(str(folder))
    result = json.loads((folder / RESULT_FILE).read_text())
    policy = recipe.augment.policy if recipe.augment.policy in COLUMNS else "ohl"
    known = [row["recipe"] for row in json.loads((RESULTS / "paper.json").read_text())["rows"]]
    of = [name for name in known if Recipe.load(str(packaged(RECIPES)[name])).model.name == recipe.model.name]
    if not of or (policy == "ohl") != (folder / POLICY_FILE).is_file() or "test_accuracy" not in result:
        raise SystemExit(f"{folder}: not a tested run of {', '.join(known)}")
    file = RESULTS / "rows" / f"{of[0]}-{policy}.json"
    file.parent.mkdir(exist_ok=True)
    file.with_suffix(".yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    command = f"ohl-accel {'search' if policy == 'ohl' else 'train'} benchmarks/results/rows/{file.stem}.yaml"
    kept = {**result, "conditions": conditions, "command": command}
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    return file


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.2f}"


def _interval(bounds: Sequence[float] | None, sign: str = "+") -> str:
    return "" if bounds is None else " to ".join(f"{100 * bound:{sign}.2f}" for bound in bounds)


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    match arguments:
        case []:
            pass
        case ["add", folder, about]:
            print(add(Path(folder), about))
        case _:
            raise SystemExit(__doc__)
    write_page()
    print(PAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
