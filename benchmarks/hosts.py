"""Two hosts with a cable between them, on one machine: network namespaces and a virtual Ethernet pair."""

import os
import shutil
import signal
import subprocess


class TwoHosts:
    """Hosts 0 and 1. Their names resolve to 127.0.0.1, as on many systems, so the right addresses must be found.

    Args:
        rate: bandwidth of the cable in each direction, in tc's notation.

    Raises:
        OSError: if permissions or programs are missing; says which.
    """

    addresses = ("10.99.0.1", "10.99.0.2")

    def __init__(self, rate: str | None = None) -> None:
        missing = [program for program in ("ip", "tc") if shutil.which(program) is None]
        if missing:
            raise OSError(f"command {missing[0]} (iproute2) is not installed")
        self.names = [f"ohl{os.getpid()}h{host}" for host in range(2)]
        self._cables = [f"ohl{os.getpid() % 100000}c{host}" for host in range(2)]
        try:
            for name in self.names:
                _run("ip", "netns", "add", name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
            ends = [
                ["name", cable, "netns", name] for cable, name in zip(self._cables, self.names, strict=True)
            ]
            _run("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
            for name, cable, address in zip(self.names, self._cables, self.addresses, strict=True):
                _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", cable)
            self.mend()
            if rate is not None:
                for name, cable in zip(self.names, self._cables, strict=True):
                    shape = ["tbf", "rate", rate, "burst", "64k", "latency", "200ms"]
                    _run("tc", "-n", name, "qdisc", "add", "dev", cable, "root", *shape)
        except OSError:
            self.remove()
            raise

    def on(self, host: int) -> list[str]:
        """The prefix of a command to run on a host."""
        return ["ip", "netns", "exec", self.names[host]]

    def cut(self) -> None:
        """Disconnect the cable: packets are lost without notice."""
        _run("ip", "-n", self.names[0], "link", "set", self._cables[0], "down")

    def mend(self) -> None:
        """Reconnect the cable."""
        for name, cable in zip(self.names, self._cables, strict=True):
            _run("ip", "-n", name, "link", "set", cable, "up")

    def processes(self) -> list[int]:
        """Ids of all processes on both hosts."""
        listed = [_run("ip", "netns", "pids", name) for name in self.names]
        return [int(line) for text in listed for line in text.split()]

    def remove(self) -> None:
        """Kill all processes on the hosts, and remove the hosts."""
        for name in self.names:
            if os.path.exists(f"/run/netns/{name}"):
                for line in _run("ip", "netns", "pids", name).split():
                    os.kill(int(line), signal.SIGKILL)
                _run("ip", "netns", "del", name)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
