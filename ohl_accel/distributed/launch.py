"""The launch that this process belongs to: whether its processes can see each other, and the error if they cannot.

No process waits forever: waits to which torch does not apply `run.timeout` are bounded here.
"""

import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import psutil
import torch
import torch.distributed as dist

from ohl_accel.errors import RunFailedError, UserError

T = TypeVar("T")


def check_launch(processes: int) -> None:
    """Reject processes that a launcher started together but that cannot see each other.

    Raises:
        UserError: if the launcher's environment has a different number of processes.
    """
    if processes > 1 and os.environ.get("WORLD_SIZE") == str(processes):
        return  # Slurm may also have started tasks: a launcher on each node
    for variable in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        started = int(os.environ.get(variable) or 1)
        if started != processes and (started > 1 or variable == "WORLD_SIZE"):
            raise UserError(
                f"the launcher started {started} processes ({variable}), but they cannot see each other: each "
                "would run alone. Start them with `accelerate launch --config_file accelerate_configs/...`, "
                "or a single process with `python -m`"
            )


def choose_interface() -> None:
    """On several nodes, let gloo use the network interface through which the main node is reached.

    By default gloo uses the address of the host name, which many systems set to 127.0.0.1: other
    nodes would then try to reach this one on themselves. GLOO_SOCKET_IFNAME, if set, is kept.
    """
    main = os.environ.get("MASTER_ADDR")
    if main is None or os.environ.get("WORLD_SIZE") == os.environ.get("LOCAL_WORLD_SIZE"):
        return
    try:
        family, _, _, _, address = socket.getaddrinfo(main, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return  # the rendezvous will report what is wrong with the address
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == own for entry in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def explain_lost(error: RuntimeError) -> str | None:
    """The message for an error in the communication with other processes; None for any other error."""
    if not (isinstance(error, dist.DistError) or "gloo/" in str(error)):
        return None
    reason = str(error).splitlines()[0]
    for pattern, plain in _REASONS.items():
        reason = re.sub(pattern, plain, reason)
    return _lost(reason)


_REASONS = {
    r"^\[\S*?/gloo/\S+\] |\. This is typically.*|\.$": "",
    r"^wait timeout after (\d+)ms, keys: /default_pg/0//cpu//0/(\d+)$": r"waited \1 ms for process \2 to begin",
}
"""Patterns in messages of torch and gloo, and their plain replacements."""


def _lost(reason: str) -> str:
    return (
        f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')} on {socket.gethostname()} lost the "
        f"others: {reason}. A process or node has stopped, the network is down, or a process was busy for longer than "
        "run.timeout; the same command on all nodes with run.resume=auto resumes from the last checkpoint"
    )


def _end(message: str) -> None:
    """End this process from another thread, since its main thread is blocked."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


@contextmanager
def ending_in_time(timeout: timedelta) -> Iterator[None]:
    """End this process, with a message, if the processes are not connected within twice the timeout.

    torch itself bounds most waits; but it cancels a request to its store that was not answered in time, and waits
    forever for the answer to the cancellation if the store's node cannot be reached.
    """
    seconds = 2 * timeout.total_seconds()
    watch = threading.Timer(seconds, _end, [_lost(f"not connected after {seconds:g} s")])
    watch.daemon = True
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        watch.start()
    try:
        yield
    finally:
        watch.cancel()


def run_on_all_ranks(action: Callable[[], T], one_first: bool = False, long: bool = False) -> T:
    """Run an action on every rank; if it fails on any of them, it fails on all, with the message of the lowest.

    Args:
        action: what to run; it must not communicate.
        one_first: one process of each node runs it before the others (to fill a cache once).
        long: it may take longer than `run.timeout`; meanwhile the ranks exchange a heartbeat.

    Raises:
        UserError, RunFailedError: if the action raised it on any rank.
    """
    if not dist.is_initialized():
        return action()
    result: T | None = None
    problem: tuple[bool, str] | None = None  # (whether the user can mend it, the message)
    own_turn = 1 if one_first and int(os.environ.get("LOCAL_RANK") or 0) else 0
    for turn in range(2 if one_first else 1):
        with _heartbeat() if long else nullcontext():
            if turn == own_turn:
                try:
                    result = action()
                except (UserError, RunFailedError) as error:
                    problem = isinstance(error, UserError), str(error)
        problems: list[tuple[bool, str] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
        failed = [(rank, *each) for rank, each in enumerate(problems) if each is not None]
        if failed:
            rank, is_mistake, text = failed[0]
            where = "" if len(failed) == len(problems) or one_first else f" (on process {rank})"
            raise (UserError if is_mistake else RunFailedError)(f"{text}{where}")
    return result  # type: ignore[return-value]


@contextmanager
def _heartbeat() -> Iterator[None]:
    """Until every rank has left the block, all ranks exchange a heartbeat each second; if one is lost, all end.

    There must be no other communication meanwhile.
    """
    nccl = dist.get_backend() == "nccl"
    all_done = torch.zeros(1, device=torch.device("cuda", torch.cuda.current_device()) if nccl else "cpu")
    done = threading.Event()

    def exchange_heartbeats() -> None:
        try:
            while not all_done.item():
                done.wait(1)
                all_done.fill_(done.is_set())
                dist.all_reduce(all_done, op=dist.ReduceOp.MIN)
        except RuntimeError as error:
            _end(explain_lost(error) or str(error))

    thread = threading.Thread(target=exchange_heartbeats, daemon=True)
    thread.start()
    yield
    done.set()
    thread.join()


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
