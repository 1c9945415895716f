"""The observer that publishes a finished run on the Hub."""

from collections.abc import Callable, Mapping
from typing import Any

from ohl_accel.hub.access import NO_LICENSE, check_access
from ohl_accel.hub.transfer import publish
from ohl_accel.observers.observer import Observer, RunInfo
from ohl_accel.recipe import Recipe


class HubPublisher(Observer):
    """Publishes the run at its end, if the recipe has `hub.repo`.

    Args:
        warn: shows problems with access to the repository.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn

    def check(self, recipe: Recipe) -> None:
        """Check name, token and write access; warn if there is no license.

        Raises:
            UserError: if publishing cannot work.
        """
        if recipe.hub.repo is not None:
            check_access(recipe.hub, self._warn)
            if recipe.hub.license is None:
                self._warn(NO_LICENSE)

    def finish(self, run: RunInfo, result: Mapping[str, Any]) -> None:
        """Upload the run; on failure, the run remains finished, and the command that repeats the upload is shown."""
        if run.recipe.hub.repo is not None:
            publish(run.folder.path, run.recipe.hub, run.say, run.warn)
