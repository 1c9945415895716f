#!/usr/bin/env bash
# One run on the nodes of a Slurm job. From the root of the checkout, with the environment activated:
#   sbatch cluster/slurm.sh recipes/imagenet_r50.yaml run.dir=/shared/runs/r50
# Adapt the lines below to your cluster: nodes, processes (GPUs) and cores per node, time.
# Only the first node writes the run folder; after a requeue any node may be the first, so put it on storage shared by all
# nodes, and HF_HOME as well, so that the data is indexed only once. Two minutes before its time is over the job saves,
# inside an outer step if need be, and is requeued. A job that is requeued or submitted again resumes there. Set
# MIXED_PRECISION=no to disable bf16, and PROCESSES on nodes without GPUs.
#SBATCH --job-name=ohl_accel
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

per_machine=${PROCESSES:-${SLURM_GPUS_ON_NODE:?set PROCESSES to the number of processes of each machine}}
main=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)  # reads to the end: no broken pipe
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one node need different ports

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGUSR2 # the launchers pass them on
# $SLURM_NODEID, the node's rank in the job, is set only in tasks started by srun
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' bash \
    --config_file accelerate_configs/nodes.yaml \
    --mixed_precision "${MIXED_PRECISION:-bf16}" \
    --num_machines "$SLURM_JOB_NUM_NODES" \
    --num_processes $((SLURM_JOB_NUM_NODES * per_machine)) \
    --main_process_ip "$main" \
    --main_process_port "$port" \
    -m ohl_accel.search "$@" run.resume=auto &
step=$!
stopped=
trap 'stopped=1; kill -TERM "$step"' USR1 # srun forwards it to the launchers, and these to the processes
code=0
wait "$step" || code=$?
if [ -n "$stopped" ]; then
    wait "$step" || code=$? # the first wait ended with the signal
    [ "$code" = 0 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
