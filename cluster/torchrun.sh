#!/usr/bin/env bash
# torchrun's elastic form: when a process or machine is lost, all restart from the last checkpoint.
# Start it on every machine, with the same values:
#   MAIN=machine0 MACHINES=4 PROCESSES=8 bash cluster/torchrun.sh recipes/imagenet_r50.yaml run.dir=/shared/runs/r50
# MAIN      the machine, or address, where the others meet
# MACHINES  how many, or a range: 2:4 continues with two when others are lost (processes of all of them must
#           divide outer.trajectories or be a multiple of it)
# PROCESSES of each machine
# PORT, RUN_ID, RESTARTS: 29500, ohl_accel and 3 unless set
# Where a machine's name resolves to 127.0.0.1 (getent hosts "$(hostname)"), set also PET_LOCAL_ADDR to its own
# address, and PET_RDZV_CONF to is_host=true on MAIN, is_host=false on the others.
# Any machine may become the first and write the run folder, so it must be on storage that all of them see, and
# HF_HOME as well, so that the data is indexed once.
set -euo pipefail

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# processes that restart must not meet in the store of those before: torch keeps it, with their addresses
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun \
    --nnodes "${MACHINES:?}" \
    --nproc-per-node "${PROCESSES:?}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "${MAIN:?}:${PORT:-29500}" \
    --rdzv-id "${RUN_ID:-ohl_accel}" \
    --max-restarts "${RESTARTS:-3}" \
    -m ohl_accel.search "$@" run.resume=auto
