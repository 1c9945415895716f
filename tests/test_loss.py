"""Machines that are lost and come back (`run.on_loss=shrink`): the search goes on with the trajectories that are left.

What it then computes equals, bit for bit, a search in one process that is told to train as many trajectories.
"""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import psutil
import pytest
from conftest import REPOSITORY, SMALL, final_state, latest, launch, rewind, wait_for_checkpoint
from forked import DIGITS
from test_nodes import TIMEOUT, hosts, run_script  # noqa: F401  the first is a fixture
from test_pauses import SignalAt, handlers  # noqa: F401  likewise

from benchmarks.hosts import TwoHosts
from ohl_accel import interrupts
from ohl_accel.distributed.layout import choose_groups, fewest_that_fit, shrink
from ohl_accel.engine import presence
from ohl_accel.engine.search import search
from ohl_accel.errors import UserError
from ohl_accel.hub.contents import Finished, files_of
from ohl_accel.policy.estimators import ESTIMATORS
from ohl_accel.recipe import HubSection
from ohl_accel.report.write import write_report
from ohl_accel.run_folder.metrics import read_metrics

SHRINK = (*SMALL, "run.mixed_precision=no", "run.on_loss=shrink", "run.keep_checkpoints=9")


@pytest.mark.parametrize(
    ("trajectories", "processes", "full", "groups", "left"),
    [
        (4, 4, 4, None, (4, 4)),
        (4, 8, 4, None, (4, 4)),
        (4, 3, 4, None, (3, 3)),
        (8, 3, 4, None, (6, 3)),  # R = 2
        (8, 24, 32, None, (6, 6)),  # G = 4
        (4, 48, 64, None, (3, 3)),  # G = 16
        (4, 56, 64, None, (2, 2)),  # half a group is lost, and 56 processes are not 3 equal groups
        (8, 4, 8, 2, (4, 1)),  # R = 4, G = 4
        (4, 2, 16, None, (2, 1)),  # less than a group
        (4, 1, 4, None, (2, 1)),  # one alone would teach nothing
        (2, 1, 2, None, (2, 1)),
        (1, 1, 2, None, (1, 1)),
    ],
)
def test_who_is_left(
    trajectories: int, processes: int, full: int, groups: int | None, left: tuple[int, int]
) -> None:
    assert shrink(trajectories, processes, full, groups) == left


def test_how_many_processes_would_be_all() -> None:
    """Against the layouts that are refused, one by one."""
    for trajectories, processes, groups in itertools.product((1, 4, 6), range(1, 20), (None, 1, 2)):
        if trajectories % (groups or 1):
            continue
        found = fewest_that_fit(trajectories, processes, groups)
        for number in range(processes, found):
            with pytest.raises(UserError, match=r"world size|must divide"):
                choose_groups(trajectories, number, groups)
        assert choose_groups(trajectories, found, groups) >= 1


def test_an_outer_step_takes_no_longer() -> None:
    """However many whole groups are lost, as long as two trajectories are left."""
    for trajectories, groups, size in itertools.product((2, 6, 12), (1, 2, 3, 6), (1, 2, 5)):
        if trajectories % groups:
            continue
        full = groups * size
        assert choose_groups(trajectories, full, groups) == groups
        for here in range(1, groups + 1):
            number, left = shrink(trajectories, here * size, full, groups)
            assert left == here
            assert number == max(2, here * trajectories // groups)


def in_one_process(numbers: Sequence[int], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A search in this process that trains so many trajectories in each outer step."""
    steps = 0
    for number, same in itertools.groupby(numbers):
        monkeypatch.setattr(presence, "shrink", lambda *_, number=number: (number, 1))
        if steps:
            rewind(folder, f"step-{steps:06d}")
        search(DIGITS, [*SHRINK, f"run.dir={folder}", "run.resume=auto"])
        steps += len(list(same))
    monkeypatch.undo()
    return folder


def numbers_of(folder: Path) -> list[int]:
    return [len(line["reward"]) for line in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_fewer_processes_and_all_again(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes, three from the second outer step on, and four again for the last."""
    folder = tmp_path / "run"
    said: list[str] = []
    for processes, name in ((4, "step-000001"), (3, "step-000003"), (4, "")):
        said += launch(processes, *SHRINK, f"run.dir={folder}", "run.resume=auto")
        if name:
            rewind(folder, name)
    assert numbers_of(folder) == (numbers := [4, 3, 3, 4])
    assert "warning: 3 of 4 processes are here: going on with 3 of 4 trajectories from outer step 2" in said
    assert "warning: all 4 processes are here again: 4 of 4 trajectories from outer step 4" in said
    assert sum(", 3 of 4 trajectories, " in line for line in said) == 3  # of which one was done again
    state = final_state(folder)
    assert state == final_state(in_one_process(numbers, tmp_path / "one", monkeypatch))
    before = final_state(undisturbed)
    assert state["metrics"][0] == before["metrics"][0]
    assert state["metrics"][1]["reward"] == before["metrics"][1]["reward"][:3]
    assert state["theta"] != before["theta"]
    result = json.loads((folder / "result.json").read_text())
    assert result["images_trained_on"] == sum(numbers) * 3 * 100
    check_what_is_drawn(folder)


def check_what_is_drawn(folder: Path) -> None:
    """Rewards of another number of trajectories in some lines."""
    page = write_report(folder, lambda text: None).read_text()
    assert "Rewards of 4 trajectories" in page
    assert page.count("<td>lost</td>") == 2
    assert files_of(Finished.read(folder), HubSection(repo="user/name"))["figures/rewards.png"]


def test_another_number_goes_on_from_the_last_outer_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two trajectories are stopped inside the third outer step; all four begin it again, two would go on inside."""
    folder = tmp_path / "run"
    own = [*SHRINK, f"run.dir={folder}", "run.resume=auto", "run.keep_checkpoints=1"]
    monkeypatch.setattr(presence, "shrink", lambda *_: (2, 1))
    with pytest.raises(interrupts.Interrupted):
        search(DIGITS, own, observers=[SignalAt(7)])
    names = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    assert names == ["step-000002", "step-000002-000001"]
    shutil.copytree(folder, tmp_path / "two")
    monkeypatch.undo()
    interrupts.install()
    search(DIGITS, own)
    again = "step-000002-000001: it is of 2 trajectories, not of 4): resuming from step-000002"
    assert again in capsys.readouterr().out
    reference = in_one_process([2, 2, 4, 4], tmp_path / "reference", monkeypatch)
    assert final_state(folder) == final_state(reference)
    assert latest(folder) == "step-000004"
    monkeypatch.setattr(presence, "shrink", lambda *_: (2, 1))
    search(DIGITS, [*SHRINK, f"run.dir={tmp_path / 'two'}", "run.resume=auto"])
    assert "resuming after outer step 2 and 1 inner steps" in capsys.readouterr().out
    assert final_state(tmp_path / "two") == final_state(
        in_one_process([2] * 4, tmp_path / "both", monkeypatch)
    )


def test_estimators_that_go_on_with_fewer() -> None:
    can = [name for name, kind in ESTIMATORS.items() if kind.trajectories_vary]
    assert can == ["reinforce", "reinforce-trust", "reinforce-factorised"]


@pytest.mark.parametrize("name", ["screening", "population", "reinforce-significant"])
def test_trajectories_with_a_state_of_their_own_cannot_be_lost(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"outer.estimator={name} needs the same trajectories"):
        search(DIGITS, [*SHRINK, f"run.dir={tmp_path}", f"outer.estimator={name}", "outer.steps=12"])


STORE = (
    "import signal, torch.distributed as d; "
    "store = d.TCPStore('0.0.0.0', 29500, is_master=True, wait_for_workers=False); signal.pause()"
)
"""The rendezvous' store, as on the page about many nodes."""
PORT = "29517"
QUICK = "last_call_timeout=2,keep_alive_interval=1,read_timeout=20"
"""Of torch's rendezvous: a machine that says nothing for three seconds is lost, and others are awaited for two."""


class Machines:
    """Two launchers of cluster/torchrun.sh, with one process each.

    Args:
        folder: `run` and `gate` are made in it.
        addresses: of the machines.
        prefixes: commands that run a program on them.
        timeout: `run.timeout`.
        hosts_store: whether the first launcher has the store of the rendezvous.
    """

    def __init__(
        self,
        folder: Path,
        addresses: Sequence[str],
        prefixes: Sequence[Sequence[str]],
        *,
        timeout: float,
        hosts_store: bool,
    ) -> None:
        self.run, self.gate = folder / "run", folder / "gate"
        self._hosts_store = hosts_store
        self._addresses, self._prefixes, self._timeout = addresses, prefixes, timeout
        self.launchers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        self.launchers = [self.start(number) for number in range(2)]
        return self

    def __exit__(self, *error: object) -> None:
        for launcher in self.launchers:
            if launcher.poll() is None:
                self.turn_off(launcher)

    def start(self, number: int) -> subprocess.Popen[str]:
        """Start the launcher of a machine."""
        options = json.dumps({"gate": str(self.gate), "whole": 4})
        return run_script(
            "torchrun.sh",
            *SHRINK,
            *(f"run.dir={self.run}", f"run.timeout={self._timeout:g}"),
            *("outer.estimator=tests/waiting.py:Waiting", f"outer.estimator_args={options}"),
            prefix=self._prefixes[number],
            MAIN=self._addresses[0],
            PORT=PORT,
            MACHINES="1:2",
            PROCESSES="1",
            PET_LOCAL_ADDR=self._addresses[number],
            PET_RDZV_CONF=f"is_host={'true' if self._hosts_store and not number else 'false'},{QUICK}",
        )

    def turn_off(self, launcher: subprocess.Popen[str]) -> None:
        """Kill a launcher and its processes, as if its machine had lost its power."""
        for process in psutil.Process(launcher.pid).children(recursive=True):
            process.kill()
        launcher.kill()
        launcher.communicate()

    def check(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both end well; the second outer step was lost with a machine, which is back for the fourth."""
        outputs = [launcher.communicate(timeout=200)[0] for launcher in self.launchers]
        assert [launcher.returncode for launcher in self.launchers] == [0, 0], outputs
        said = "".join(outputs)
        left = "1 of 2 processes are here: going on with 2 of 4 trajectories from outer step 2"
        assert said.count(left) == 1, said
        assert said.count("all 2 processes are here again: 4 of 4 trajectories from outer step 4") == 1, said
        assert numbers_of(self.run) == [4, 2, 2, 4]
        reference = in_one_process([4, 2, 2, 4], tmp_path / "one", monkeypatch)
        assert final_state(self.run) == final_state(reference)


@pytest.mark.long
@pytest.mark.slow
def test_a_machine_without_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two launchers is killed with its process, and started again."""
    assert STORE in (REPOSITORY / "docs" / "many_nodes.md").read_text()
    store = subprocess.Popen([sys.executable, "-c", STORE.replace("29500", PORT)])
    try:
        with Machines(tmp_path, ["127.0.0.1"] * 2, [[], []], timeout=60, hosts_store=False) as machines:
            wait_for_checkpoint(machines.launchers[0], machines.run, "step-000001")
            machines.turn_off(machines.launchers[0])
            machines.gate.touch()
            wait_for_checkpoint(machines.launchers[1], machines.run, "step-000002")
            machines.launchers[0] = machines.start(0)
            machines.check(tmp_path, monkeypatch)
    finally:
        store.kill()
        store.wait()


@pytest.mark.long
@pytest.mark.network
def test_a_pulled_cable(hosts: TwoHosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Pulled out in the middle of an outer step, and plugged in again."""
    prefixes = [hosts.on(0), hosts.on(1)]
    with Machines(tmp_path, hosts.addresses, prefixes, timeout=TIMEOUT, hosts_store=True) as machines:
        wait_for_checkpoint(machines.launchers[0], machines.run, "step-000001")
        hosts.cut()
        machines.gate.touch()
        wait_for_checkpoint(machines.launchers[0], machines.run, "step-000002")
        hosts.mend()
        machines.check(tmp_path, monkeypatch)
