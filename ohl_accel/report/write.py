"""Draw a page and save it, whole or not at all."""

import time
from collections.abc import Callable
from pathlib import Path

from ohl_accel.errors import UserError
from ohl_accel.report.examples import examples_or_reason
from ohl_accel.report.gallery import draw_gallery, load_policy
from ohl_accel.report.page import beside_page, gallery_page, run_page
from ohl_accel.report.pictures import read_image
from ohl_accel.report.read import Run, read_run
from ohl_accel.run_folder.atomic import write_text
from ohl_accel.run_folder.files import REPORT_FILE

_REFRESH = 30.0

Say = Callable[[str], None]


def write_report(folder: Path, say: Say, output: Path | None = None, watch: float | None = None) -> Path:
    """Draw the report of a run, once or repeatedly until the run is finished.

    Args:
        folder: of the run.
        say: shows a line.
        output: the HTML file; `report.html` in the run folder if None.
        watch: seconds between two drawings; None to draw once.

    Returns:
        The HTML file.

    Raises:
        UserError: if the folder cannot be read or the file cannot be written.
    """
    output = output or folder / REPORT_FILE
    run = read_run(folder)
    examples, no_examples = examples_or_reason(run.recipe) if run.is_run else (None, "")
    while True:
        _save(output, run_page(run, examples, no_examples, watch or _REFRESH))
        say(f"{output}: {_status(run)}")
        for note in run.notes:
            say(f"note: {note}")
        if watch is None or run.finished:
            return output
        time.sleep(watch)
        run = read_run(folder)


def write_beside(first: Path, second: Path, output: Path) -> None:
    """Draw two runs side by side.

    Args:
        first, second: run folders, finished or in progress.
        output: the HTML file.

    Raises:
        UserError: if a folder is not one of a run, or the file cannot be written.
    """
    runs = [read_run(folder) for folder in (first, second)]
    for run in runs:
        if not run.steps:
            raise UserError(f"{run.folder} has no finished outer step to show beside another run")
    _save(output, beside_page(*runs))


def write_at_end(folder: Path, say: Say) -> None:
    """Draw the report of a finished run; an error is only reported, since it must not fail the run."""
    try:
        write_report(folder, lambda text: None)
    except Exception as error:
        say(
            f"warning: the report cannot be drawn: {error}; the run itself is complete. "
            f"To try again: python -m ohl_accel.report {folder}"
        )


def write_gallery(policy: str, image: Path, output: Path, draws: int, seed: int) -> None:
    """Draw what a policy does to an image.

    Args:
        policy: a run folder, a `policy.json` or a name on the Hub.
        image: any file that Pillow can read.
        output: the HTML file.
        draws: number of randomly sampled operations.
        seed: of the operations and signs.

    Raises:
        UserError: if one of them is not valid.
    """
    learned = load_policy(policy)
    gallery = draw_gallery(learned, read_image(image), draws, seed)
    _save(output, gallery_page(learned, gallery, policy, image.name, seed))


def _save(output: Path, page: str) -> None:
    try:
        write_text(output, page)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}; choose another --output") from None


def _status(run: Run) -> str:
    if not run.is_run:
        return " and ".join(table.name for table in run.tables)
    if run.finished or not run.steps:
        return "finished run" if run.finished else "no outer step yet"
    total = f" of {run.outer_steps}" if run.outer_steps else ""
    return f"run in progress, outer step {run.steps[-1].outer_step + 1}{total}"
