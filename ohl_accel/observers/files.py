"""Observers that write to the run folder: `metrics.jsonl` with `result.json`, and the report."""

from collections.abc import Mapping
from typing import Any

from ohl_accel.errors import RunFailedError
from ohl_accel.observers.observer import Observer, RunInfo
from ohl_accel.report.write import write_at_end
from ohl_accel.run_folder.files import METRICS_FILE, RESULT_FILE
from ohl_accel.run_folder.metrics import amend_last_line, append_line, keep_lines_before
from ohl_accel.run_folder.result import read_result


class MetricsFile(Observer):
    """`metrics.jsonl`, a line for each outer step, and `result.json`.

    Lines that cannot be written are kept, and written with the next one that can.
    """

    def __init__(self) -> None:
        self._unwritten: list[Mapping[str, Any]] = []

    def start(self, run: RunInfo) -> None:
        """Remove the lines that a resumed run will rewrite, and the result of one that is made longer."""
        earlier: Mapping[str, Any] = {}
        if run.first_outer_step < run.recipe.outer.steps:
            earlier = read_result(run.folder.path) or {}
            (run.folder / RESULT_FILE).unlink(missing_ok=True)
        missing = keep_lines_before(run.folder / METRICS_FILE, run.first_outer_step, without=earlier)
        if missing:
            run.warn(
                f"{run.folder / METRICS_FILE} has no whole line for {len(missing)} of the {run.first_outer_step} outer "
                f"steps done ({_in_words(missing)}): the policy and the network are not affected, the report is"
            )

    def outer_step(self, run: RunInfo, line: Mapping[str, Any]) -> None:
        """Append the line; if that fails, say so once, and let the run go on."""
        self._unwritten.append(line)
        try:
            self._write(run)
        except OSError as error:
            if len(self._unwritten) == 1:
                run.warn(
                    f"{run.folder / METRICS_FILE} cannot be written: {error.strerror}. The run goes on, and writes the "
                    "lines of this and the following outer steps as soon as it can"
                )

    def finish(self, run: RunInfo, result: Mapping[str, Any]) -> None:
        """Add the result to the last line, and write `result.json`.

        Raises:
            RunFailedError: if they cannot be written.
        """
        try:
            self._write(run)
            amend_last_line(run.folder / METRICS_FILE, result)
            run.folder.write_json(RESULT_FILE, result)
        except OSError as error:
            raise RunFailedError(
                f"the run is finished, its policy and network are saved in {run.folder.path}, but {METRICS_FILE} or "
                f"{RESULT_FILE} cannot be written there: {error.strerror}. Once they can, the same command with "
                "run.resume=auto tests the network again"
            ) from error

    def _write(self, run: RunInfo) -> None:
        if self._unwritten:
            append_line(run.folder / METRICS_FILE, *self._unwritten)
            self._unwritten.clear()


class Report(Observer):
    """`report.html` at the end of a run; `python -m ohl_accel.report` draws it at any time."""

    def finish(self, run: RunInfo, result: Mapping[str, Any]) -> None:
        """Draw the report; a failure is only reported."""
        write_at_end(run.folder.path, run.say)


def _in_words(outer_steps: list[int]) -> str:
    """`outer_step 3, 4, 5, ...`, as in the lines."""
    shown = ", ".join(map(str, outer_steps[:5]))
    return f"outer_step {shown}{', ...' if outer_steps[5:] else ''}"
