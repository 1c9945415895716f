"""Observers that write to the run folder: `metrics.jsonl` with `result.json`, and the report."""

from collections.abc import Mapping
from typing import Any

from ohl_accel.errors import RunFailedError
from ohl_accel.observers.observer import Observer, RunInfo
from ohl_accel.report.write import write_at_end
from ohl_accel.run_folder.files import METRICS_FILE, RESULT_FILE
from ohl_accel.run_folder.metrics import amend_last_line, append_line, keep_lines_before


class MetricsFile(Observer):
    """`metrics.jsonl`, a line for each outer step, and `result.json`."""

    def start(self, run: RunInfo) -> None:
        """Remove the lines that a resumed run will rewrite."""
        keep_lines_before(run.folder / METRICS_FILE, run.first_outer_step)

    def outer_step(self, run: RunInfo, line: Mapping[str, Any]) -> None:
        """Append the line.

        Raises:
            RunFailedError: if it cannot be written.
        """
        try:
            append_line(run.folder / METRICS_FILE, line)
        except OSError as error:
            raise RunFailedError(
                f"{run.folder / METRICS_FILE} cannot be written: {error.strerror}; once fixed, rerun with "
                "run.resume=auto"
            ) from error

    def finish(self, run: RunInfo, result: Mapping[str, Any]) -> None:
        """Add the result to the last line, and write `result.json`."""
        amend_last_line(run.folder / METRICS_FILE, result)
        run.folder.write_json(RESULT_FILE, result)


class Report(Observer):
    """`report.html` at the end of a run; `python -m ohl_accel.report` draws it at any time."""

    def finish(self, run: RunInfo, result: Mapping[str, Any]) -> None:
        """Draw the report; a failure is only reported."""
        write_at_end(run.folder.path, run.say)
