"""Several nodes: two hosts with a cable between them, each with its own launcher, and the ready files."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import exchanges
import kubeflow_trainer_api.models as kubeflow
import pytest
import yaml
from conftest import REPOSITORY, SMALL, final_state, start, wait_for_checkpoint

from benchmarks.hosts import TwoHosts
from ohl_accel.distributed.layout import choose_groups
from ohl_accel.recipe import Recipe

pytestmark = [pytest.mark.network, pytest.mark.slow]

PORT = "29511"
TIMEOUT = 20.0
"""`run.timeout` of the run whose cable is cut, in seconds: above what a busy machine keeps a process waiting."""
ENDING = 40.0
"""What Python and the launcher may take besides, on a machine that is busy with other things."""


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    """A cable so slow that an outer step takes about a second, most of it in the exchange."""
    try:
        made = TwoHosts(rate="2mbit")
    except OSError as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    yield made
    made.remove()


def start_both(hosts: TwoHosts, folder: Path, *overrides: str) -> list[subprocess.Popen[str]]:
    """The small search, a process on each host, as for several nodes; only host 0 sees the run folder."""
    return [
        start(
            2,
            f"run.dir={folder / f'host{rank}'}",
            "run.mixed_precision=no",
            *overrides,
            config="nodes",
            flags=[
                *("--num_machines", "2", "--machine_rank", str(rank)),
                *("--main_process_ip", hosts.addresses[0], "--main_process_port", PORT),
            ],
            prefix=hosts.on(rank),
            ACCELERATE_USE_CPU="true",
        )
        for rank in range(2)
    ]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.network
def test_a_cut_cable_and_after(hosts: TwoHosts, undisturbed: Path, tmp_path: Path) -> None:
    """Both hosts give up in time, each with a message; once reconnected, the run resumes to the same result."""
    launches = start_both(hosts, tmp_path, f"run.timeout={TIMEOUT}")
    wait_for_checkpoint(launches[0], tmp_path / "host0", "step-000001")
    hosts.cut()
    cut = time.monotonic()
    outputs = [process.communicate(timeout=180)[0] for process in launches]
    assert time.monotonic() - cut < TIMEOUT + ENDING
    for process, output in zip(launches, outputs, strict=True):
        assert process.returncode == 1, output
        assert f"lost the others: Timed out waiting {1000 * TIMEOUT:.0f}ms" in output
        assert "run.resume=auto resumes from the last checkpoint" in output
        assert "[rank" not in output  # torch's prefix of a worker's traceback
    assert hosts.processes() == []

    hosts.mend()
    launches = start_both(hosts, tmp_path, "run.resume=auto")
    outputs = [process.communicate(timeout=200)[0] for process in launches]
    assert [process.returncode for process in launches] == [0, 0], outputs
    assert "resuming after outer step" in outputs[0]
    assert final_state(tmp_path / "host0") == final_state(undisturbed)
    assert not (tmp_path / "host1").exists()


@pytest.mark.slow
@pytest.mark.network
def test_every_exchange_over_a_cut_cable(hosts: TwoHosts, tmp_path: Path) -> None:
    """Each ends in time on both hosts and says why; so does a process that waits for one that never comes."""
    programs = [
        subprocess.Popen(
            [*hosts.on(host), sys.executable, "-m", "tests.exchanges", str(host), tmp_path],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for host in range(2)
    ]
    pairs = [(name, host) for host in range(2) for name in exchanges.names_on(host)]
    end = time.monotonic() + 300
    going = [tmp_path / f"{name}-{host}.going" for name, host in pairs if name != exchanges.JOINING]
    while not all(file.exists() for file in going):
        assert time.monotonic() < end
        time.sleep(0.1)
    hosts.cut()
    cut = time.monotonic()
    outputs = [program.communicate(timeout=120)[0] for program in programs]
    assert time.monotonic() - cut < 2 * exchanges.TIMEOUT.total_seconds() + ENDING
    assert sorted("".join(outputs).split()) == sorted([part for name, _ in pairs for part in (name, "1")])
    for name, host in pairs:
        said = (tmp_path / f"{name}-{host}.out").read_text()
        assert said.count(f"error: process {host} of 2 on ") == said.count(" lost the others: ") == 1, said
        assert "run.resume=auto resumes from the last checkpoint" in said
        assert "Traceback" not in said
    assert "1/2 clients joined. " in (tmp_path / f"{exchanges.JOINING}-0.out").read_text()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.network
def test_slurm_script(hosts: TwoHosts, undisturbed_pair: Path, tmp_path: Path) -> None:
    """The script as it is, with an srun that starts a task on each host as Slurm's does.

    Two groups of two, each on a host: each inter-node group carries half of the winner's state over the cable.
    """
    tasks = "\n".join(
        f'SLURM_NODEID={rank} SLURM_PROCID={rank} {" ".join(hosts.on(rank))} "$@" & tasks+=($!)'
        for rank in range(2)
    )
    write_program(
        tmp_path / "srun", f'shift\n{tasks}\nfor task in "${{tasks[@]}}"; do wait "$task" || exit; done'
    )
    write_program(tmp_path / "scontrol", f"printf '%s\\n' {' '.join(hosts.addresses)}")
    done = run_script(
        "slurm.sh",
        f"run.dir={tmp_path / 'run'}",
        "outer.groups=2",
        programs=tmp_path,
        SLURM_JOB_ID="7",
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_NODELIST="host[0-1]",
        SLURM_STEP_NUM_TASKS="2",
        SLURM_NTASKS="2",
        PROCESSES="2",
        MIXED_PRECISION="no",
    )
    output, _ = done.communicate(timeout=200)
    assert done.returncode == 0, output
    assert "4 trajectories in 2 x 2 of 4 processes" in output
    assert final_state(tmp_path / "run") == final_state(undisturbed_pair)


@pytest.mark.long
def test_slurm_script_requeues_at_the_end_of_its_time(undisturbed: Path, tmp_path: Path) -> None:
    """SIGUSR1 to the script, as Slurm sends it by --signal; srun forwards signals to its tasks."""
    forward = "trap 'kill -TERM $task' TERM"
    write_program(
        tmp_path / "srun", f'shift\n{forward}\nSLURM_NODEID=0 "$@" & task=$!\nwait $task || wait $task'
    )
    write_program(
        tmp_path / "scontrol", f'[ "$1" != requeue ] && echo 127.0.0.1 || echo $2 > {tmp_path}/requeued'
    )

    def begin() -> subprocess.Popen[str]:
        return run_script(
            "slurm.sh",
            f"run.dir={tmp_path / 'run'}",
            programs=tmp_path,
            SLURM_JOB_ID="8",
            SLURM_JOB_NUM_NODES="1",
            SLURM_JOB_NODELIST="host0",
            PROCESSES="2",
            MIXED_PRECISION="no",
        )

    job = begin()
    wait_for_checkpoint(job, tmp_path / "run", "step-000001")
    os.kill(job.pid, signal.SIGUSR1)
    output, _ = job.communicate(timeout=100)
    assert "saved; run.resume=auto goes on from there" in output
    assert job.returncode != 0
    assert (tmp_path / "requeued").read_text() == "8\n"
    output, _ = (again := begin()).communicate(timeout=200)
    assert again.returncode == 0, output
    assert "resuming after outer step" in output
    assert final_state(tmp_path / "run") == final_state(undisturbed)


@pytest.mark.long
@pytest.mark.network
def test_torchrun_restarts_after_a_lost_process(hosts: TwoHosts, undisturbed: Path, tmp_path: Path) -> None:
    """A worker killed without warning: all restart automatically and resume from the last checkpoint."""
    agents = [
        run_script(
            "torchrun.sh",
            f"run.dir={tmp_path}",
            prefix=hosts.on(rank),
            MAIN=hosts.addresses[0],
            PET_LOCAL_ADDR=hosts.addresses[rank],
            PET_RDZV_CONF=f"is_host={'false' if rank else 'true'}",
            MACHINES="2",
            PROCESSES="1",
        )
        for rank in range(2)
    ]
    wait_for_checkpoint(agents[0], tmp_path, "step-000001")
    children = Path(f"/proc/{agents[1].pid}/task/{agents[1].pid}/children")
    (worker,) = children.read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    outputs = [process.communicate(timeout=200)[0] for process in agents]
    assert [process.returncode for process in agents] == [0, 0], outputs
    assert "lost the others" in outputs[0]
    assert sum(output.count("resuming after outer step") for output in outputs) == 1
    assert final_state(tmp_path) == final_state(undisturbed)


def write_program(path: Path, body: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def run_script(
    name: str, *overrides: str, prefix: Sequence[str] = (), programs: Path = REPOSITORY, **environment: str
) -> subprocess.Popen[str]:
    """Begin the small search by a script of cluster/, in an activated environment.

    Args:
        name: of the script.
        overrides: of the recipe.
        prefix: a command that runs it.
        programs: a folder of programs that go before the machine's.
        environment: variables besides this process's.
    """
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        [*prefix, "bash", f"cluster/{name}", "recipes/digits.yaml", *SMALL, *overrides],
        cwd=REPOSITORY,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", **environment, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_slurm_script_needs_to_know_the_processes(tmp_path: Path) -> None:
    done = run_script("slurm.sh", SLURM_GPUS_ON_NODE="")
    output, _ = done.communicate(timeout=20)
    assert done.returncode != 0
    assert "set PROCESSES to the number of processes of each machine" in output


KUBEFLOW: dict[str, Any] = {
    "PersistentVolumeClaim": kubeflow.IoK8sApiCoreV1PersistentVolumeClaim,
    "TrainingRuntime": kubeflow.TrainerV1alpha1TrainingRuntime,
    "TrainJob": kubeflow.TrainerV1alpha1TrainJob,
}
FREE = {"labels", "requests", "limits"}
"""Fields of Kubernetes whose keys are the user's."""


def kubeflow_manifest() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((REPOSITORY / "cluster" / "kubeflow.yaml").read_text()))


def fits_the_api(document: dict[str, Any]) -> bool:
    """Whether Kubeflow's own models, made from its CRDs, take a document as it is: they drop what they do not know."""
    try:
        return bool(KUBEFLOW[document["kind"]].from_dict(document).to_dict() == document)
    except (KeyError, ValueError):  # a required field is missing, or a value has another type
        return False


def fields_of(value: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Each mapping with fields in a document, and each field."""
    if isinstance(value, dict):
        for field, part in list(value.items()):
            yield value, field
            if field not in FREE:
                yield from fields_of(part)
    elif isinstance(value, list):
        for part in value:
            yield from fields_of(part)


def test_kubeflow_manifest_fits_the_api() -> None:
    """Every field; each of them, misspelt, is noticed."""
    for document in kubeflow_manifest():
        assert fits_the_api(document)
        fields = list(fields_of(document))
        assert len(fields) > 7
        for mapping, field in fields:
            before = dict(mapping)
            mapping[f"{field}s"] = mapping.pop(field)
            assert not fits_the_api(document), field
            mapping.clear()
            mapping |= before
        assert fits_the_api(document)


def test_kubeflow_manifest_is_consistent() -> None:
    """Its parts refer to each other correctly, and the recipe is ours and fits the nodes."""
    claim, runtime, job = kubeflow_manifest()
    assert [document["kind"] for document in (claim, runtime, job)] == list(KUBEFLOW)
    for document in (runtime, job):
        assert document["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    reference = job["spec"]["runtimeRef"]
    assert (reference["kind"], reference["name"]) == (runtime["kind"], runtime["metadata"]["name"])
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    labels = replicated["template"]["metadata"]["labels"]
    assert labels["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    pod: dict[str, Any] = replicated["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == replicated["name"] == "node"  # the container that Trainer looks for
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/runs"]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert environment["HF_HOME"].startswith("/runs/")
    trainer = job["spec"]["trainer"]
    module, path, *overrides = trainer["args"][1:]
    assert (trainer["command"], trainer["args"][0], module) == (["torchrun"], "-m", "ohl_accel.search")
    recipe = Recipe.load(str(REPOSITORY / path.lstrip("/")), overrides)
    assert recipe.run.resume == "auto"
    assert recipe.run.dir.startswith("/runs/")
    resources = trainer["resourcesPerNode"]
    gpus = int(resources["limits"]["nvidia.com/gpu"])
    assert int(resources["requests"]["nvidia.com/gpu"]) == gpus  # or Trainer starts a process for each core
    assert int(resources["requests"]["cpu"]) >= gpus * recipe.data.workers
    assert choose_groups(recipe.outer.trajectories, trainer["numNodes"] * gpus, None) == trainer["numNodes"]
    assert recipe.inner.batch_size % gpus == 0
