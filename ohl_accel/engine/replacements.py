"""Undecodable images of a run: how many are allowed, and the log of their replacements."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ohl_accel.data import Images
from ohl_accel.data.images import Replaced
from ohl_accel.distributed.groups import Groups
from ohl_accel.errors import RunFailedError
from ohl_accel.run_folder.metrics import append_line, keep_lines_before, read_metrics

_JUDGED_FROM = 1000


class Replacements:
    """Counts the images that were replaced, and ends a run with too many of them.

    What is judged is their share of all images that the run, or what resumed it, has decoded of a split; until
    these are 1,000, or the whole split if it is smaller, their share of so many.

    Args:
        groups: of the run.
        allowed: `data.max_corrupt`, a fraction.
        log: `replaced.jsonl`, on the main process only; lines that a resumed run will rewrite are removed.
        first_outer_step: 0, or the first one of a resumed run.
        before: `totals` of the run that is resumed.
    """

    def __init__(
        self,
        *,
        groups: Groups,
        allowed: float,
        log: Path | None,
        first_outer_step: int,
        before: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._groups, self._allowed, self._log = groups, allowed, log
        self._before = dict(before or {})
        self.totals: dict[str, Sequence[int]] = dict(self._before)
        """Of each split that is not in memory, by its description: images decoded so far, and how many could not be."""
        self._unwritten: list[dict[str, Any]] = []
        if log is not None:
            keep_lines_before(log, first_outer_step)

    def count(self, outer_step: int, images: Images | None, everywhere: bool = False) -> int:
        """How many different images of a split were replaced since the last call; every process must call it.

        Images in memory are counted each time; new ones are logged.

        Args:
            outer_step: the one that ends, from 0.
            images: of the split; None counts as empty.
            everywhere: whether the split was divided among all processes; otherwise among those of each group.

        Raises:
            RunFailedError: if the run has had more than `allowed`.
        """
        if images is None:
            return 0
        different = self._log_and_judge(outer_step, images, None, everywhere)
        if not images.kept:
            images.tally = images.tally.following()
        return different

    def state(self, images: Images) -> dict[str, Any]:
        """For a checkpoint: what was decoded so far, and of the training split in the outer step in progress.

        Every process must call it.
        """
        tally, groups = images.tally, self._groups
        if images.kept:
            return {"decoded": self.totals}
        decoded = groups.sum_in_group(torch.tensor(float(tally.decoded), dtype=torch.float64))
        replaced = [asdict(each) for each in groups.gather_objects(tally.replaced)]
        return {
            "decoded": self.totals,
            "decoded_within": {"decoded": int(decoded), "replaced": replaced},
        }

    def go_on(self, images: Images, state: Mapping[str, Any]) -> None:
        """Count again what a checkpoint inside an outer step had counted in it (`state`)."""
        within = state.get("decoded_within")
        if within and self._groups.data_rank == 0:
            images.tally.add(within["decoded"], [Replaced(**each) for each in within["replaced"]])

    def check(self, outer_step: int, images: Images, planned: int) -> None:
        """End the run as soon as more images were replaced than the run may have at the end of the outer step.

        Args:
            outer_step: the one in progress, from 0.
            images: of the training split.
            planned: images of the whole outer step.

        Raises:
            RunFailedError: naming the first of them.
        """
        self._log_and_judge(outer_step, images, planned, everywhere=False)

    def _log_and_judge(self, outer_step: int, images: Images, planned: int | None, everywhere: bool) -> int:
        groups, allowed, tally = self._groups, self._allowed, images.tally
        add = groups.sum_in_world if everywhere else groups.sum_in_group
        counts = [tally.decoded, len(tally.replaced), tally.decoded_before, tally.replaced_before]
        decoded, bad, decoded_before, bad_before = add(torch.tensor(counts, dtype=torch.float64)).tolist()
        whole = decoded_before + (decoded if planned is None or images.kept else planned)
        if not images.kept:
            done, bad_done = self._before.get(images.description, (0, 0))
            decoded_before, bad_before, whole = decoded_before + done, bad_before + bad_done, whole + done
        decoded, bad = decoded + decoded_before, bad + bad_before
        if planned is None and not images.kept:
            self.totals[images.description] = (round(decoded), round(bad))
        too_many = bad > allowed * max(whole, min(len(images), _JUDGED_FROM))
        if planned is not None and not too_many:
            return 0
        replaced = groups.gather_objects(tally.replaced, everywhere)
        different = list(dict.fromkeys(replaced))
        self._write(outer_step, different)
        if too_many:
            of = f"{decoded:.0f}" if whole == decoded else f"the first {decoded:.0f} of {whole:.0f}"
            raise RunFailedError(
                f"{bad:.0f} of {of} images of {images.description} could not be decoded, more than "
                f"data.max_corrupt={allowed:g} allows; replaced.jsonl in the run folder lists them, the first is "
                f"{replaced[0].image}: {replaced[0].why}"
            )
        return len(different)

    def _write(self, outer_step: int, replaced: Sequence[Replaced]) -> None:
        """Log those that are not yet in the log; what cannot be written now is written with the next ones."""
        if self._log is None or not (replaced or self._unwritten):
            return
        try:
            logged = {line["image"] for line in [*read_metrics(self._log), *self._unwritten]}
            new = [{"outer_step": outer_step, **asdict(one)} for one in replaced if one.image not in logged]
            self._unwritten += new
            append_line(self._log, *self._unwritten)
            self._unwritten.clear()
        except OSError:
            pass  # the log is not worth a run; metrics.jsonl says that the disk is full
