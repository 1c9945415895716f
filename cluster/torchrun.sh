#!/usr/bin/env bash
# Elastic launch with torchrun: when a process or node is lost, all restart from the last checkpoint.
# Start it on every node, with the same values:
#   MAIN=machine0 MACHINES=4 PROCESSES=8 bash cluster/torchrun.sh recipes/imagenet_r50.yaml run.dir=/shared/runs/r50
# MAIN      the host name or address of the rendezvous
# MACHINES  number of nodes, or a range: 2:4 continues with two when others are lost. They host all trajectories (the
#           total number of processes must divide outer.trajectories or be a multiple of it), or with
#           run.on_loss=shrink fewer, until the others are back; see docs/many_nodes.md
# PROCESSES per node
# PORT, RUN_ID, RESTARTS: 29500, ohl_accel and 3 by default
# If a node's host name resolves to 127.0.0.1 (getent hosts "$(hostname)"), also set PET_LOCAL_ADDR to its own
# address, and PET_RDZV_CONF to is_host=true on MAIN, is_host=false on the others.
# Any node may become the first one and write the run folder, so it must be on storage shared by all nodes, and
# HF_HOME as well, so that the data is indexed only once.
set -euo pipefail

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGUSR2 # torchrun passes them on
# restarted processes must not use the previous store, which torch keeps with the previous addresses
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun \
    --nnodes "${MACHINES:?}" \
    --nproc-per-node "${PROCESSES:?}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "${MAIN:?}:${PORT:-29500}" \
    --rdzv-id "${RUN_ID:-ohl_accel}" \
    --max-restarts "${RESTARTS:-3}" \
    -m ohl_accel.search "$@" run.resume=auto
