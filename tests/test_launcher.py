"""`ohl-accel search --processes N` as the launcher of its processes: how it ends when they, or it, are stopped.

The processes only wait for a signal, as those of a search do between two inner steps.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY

LAUNCHER = """
import signal, sys
import psutil
from ohl_accel.cli import run_command

signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
psutil.cpu_count = lambda logical=True: 8  # where there are more cores than processes, Accelerate chooses threads

def launch():
    from ohl_accel.distributed.launcher import run_launcher
    run_launcher(sys.argv[1:])

sys.exit(run_command(launch))
"""
PROCESS = """
import os, pathlib, sys, time
from ohl_accel import interrupts
from ohl_accel.cli import run_command

def wait():
    folder, rank = pathlib.Path(sys.argv[1]), os.environ.get("RANK", "0")
    with interrupts.deferred(60):
        (folder / rank).write_text(str(os.getpid()))
        end = time.monotonic() + 60
        while not interrupts.requested() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(float(sys.argv[2]))
    raise interrupts.Interrupted(interrupts.requested(), "inner step saved")

sys.exit(run_command(wait))
"""
SAVED = "stopped; inner step saved; run.resume=auto goes on from there\n"
LAST = "run.resume=auto resumes from the last checkpoint"
AT_ONCE = f"stopped at once by a second signal, {{}}; {LAST}, if there is one\n"
KILLED = (
    "error: process 0 was killed by SIGKILL, as the system does where memory is short; "
    f"the same command with {LAST}\n"
)


@pytest.mark.parametrize(
    ("processes", "number", "twice", "saving", "code", "message"),
    [
        (2, signal.SIGUSR1, False, 0.1, 75, SAVED),
        (2, signal.SIGTERM, True, 60, 75, AT_ONCE.format("SIGTERM")),
        (1, signal.SIGINT, True, 60, 130, AT_ONCE.format("SIGINT")),
        (2, signal.SIGKILL, False, 0.0, 1, KILLED),
    ],
)
def test_a_launch_ends_with_one_message_and_the_exit_code_of_its_processes(
    processes: int,
    number: signal.Signals,
    twice: bool,
    saving: float,
    code: int,
    message: str,
    tmp_path: Path,
) -> None:
    """Signals to the launcher; SIGKILL to the first process: the others get SIGTERM, and the main one is gone."""
    (tmp_path / "process.py").write_text(PROCESS)
    config = REPOSITORY / "accelerate_configs" / ("cpu.yaml" if processes == 1 else "cpu_processes.yaml")
    command = [
        sys.executable,
        "-c",
        LAUNCHER,
        "--config_file",
        str(config),
        "--num_processes",
        str(processes),
    ]
    launcher = subprocess.Popen(
        [*command, str(tmp_path / "process.py"), str(tmp_path), str(saving)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    ready = [tmp_path / str(rank) for rank in range(processes)]
    end = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in ready):
        assert time.monotonic() < end
        assert launcher.poll() is None
        time.sleep(0.02)
    pids = [int(file.read_text()) for file in ready]
    psutil.Process(pids[0] if number == signal.SIGKILL else launcher.pid).send_signal(number)
    for pause in (1.8, 10, 10) if twice else ():  # sooner, it is taken for the same signal, come by two ways
        try:
            launcher.wait(pause)
            break
        except subprocess.TimeoutExpired:
            launcher.send_signal(number)
    printed, _ = launcher.communicate(timeout=20)
    assert (launcher.returncode, printed) == (code, message)
    assert not any(map(psutil.pid_exists, pids))
