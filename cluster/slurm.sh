#!/usr/bin/env bash
# One run on the machines of a Slurm job. From the root of the checkout, with the environment activated:
#   sbatch cluster/slurm.sh recipes/imagenet_r50.yaml run.dir=/shared/runs/r50
# Change the lines below to your cluster: machines, processes (GPUs) and cores of each machine, time.
# The run folder is written by the first machine alone; after a requeue any machine may be the first, so
# put it on storage that all of them see, and HF_HOME as well, so that the data is indexed once. A job that is
# requeued or submitted again resumes from the last checkpoint. Set MIXED_PRECISION=no to leave bf16,
# PROCESSES for machines without GPUs.
#SBATCH --job-name=ohl_accel
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

per_machine=${PROCESSES:-${SLURM_GPUS_ON_NODE:?set PROCESSES to the number of processes of each machine}}
main=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)  # reads to the end: no broken pipe
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs that share a machine must not meet

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# $SLURM_NODEID, this machine's rank in the job, is known only where srun starts a task
# shellcheck disable=SC2016
exec srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' bash \
    --config_file accelerate_configs/nodes.yaml \
    --mixed_precision "${MIXED_PRECISION:-bf16}" \
    --num_machines "$SLURM_JOB_NUM_NODES" \
    --num_processes $((SLURM_JOB_NUM_NODES * per_machine)) \
    --main_process_ip "$main" \
    --main_process_port "$port" \
    -m ohl_accel.search "$@" run.resume=auto
