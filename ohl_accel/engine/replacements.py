"""Undecodable images of a run: how many are allowed, and the log of their replacements."""

from dataclasses import asdict
from pathlib import Path

import torch

from ohl_accel.data import Images
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
    """

    def __init__(self, *, groups: Groups, allowed: float, log: Path | None, first_outer_step: int) -> None:
        self._groups, self._allowed, self._log = groups, allowed, log
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
        decoded, bad = decoded + decoded_before, bad + bad_before
        too_many = bad > allowed * max(whole, min(len(images), _JUDGED_FROM))
        if planned is not None and not too_many:
            return 0
        replaced = groups.gather_objects(tally.replaced, everywhere)
        different = list(dict.fromkeys(replaced))
        if self._log is not None and different:
            logged = {line["image"] for line in read_metrics(self._log)}
            for one in different:
                if one.image not in logged:
                    append_line(self._log, {"outer_step": outer_step, **asdict(one)})
        if too_many:
            of = f"{decoded:.0f}" if whole == decoded else f"the first {decoded:.0f} of {whole:.0f}"
            raise RunFailedError(
                f"{bad:.0f} of {of} images of {images.description} could not be decoded, more than "
                f"data.max_corrupt={allowed:g} allows; replaced.jsonl in the run folder lists them, the first is "
                f"{replaced[0].image}: {replaced[0].why}"
            )
        return len(different)
