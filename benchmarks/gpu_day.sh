#!/usr/bin/env bash
# What nobody has measured yet, on a machine with a GPU, in order of value; about 45 minutes with the default.
#
#   bash benchmarks/gpu_day.sh CIFAR10 [OUT]      # a folder with CIFAR-10; results go to benchmarks/results/gpu
#
# Every part writes its result and what it printed to OUT; a part whose `done` file is there is not run again, so the
# same command continues where it stopped. A part that fails is named at the end, and the others are run.
#   PYTHON    the interpreter of an environment with ohl-accel and its tests (.venv/bin/python)
#   SEEDS     of the comparison (2)
#   EPOCHS    of its trainings (15)
set -uo pipefail
cd "$(dirname "$0")/.."
CIFAR10=${1:?give a folder with CIFAR-10, as data.path takes it}
OUT=${2:-benchmarks/results/gpu}
PYTHON=${PYTHON:-.venv/bin/python}
SEEDS=${SEEDS:-2} EPOCHS=${EPOCHS:-15}
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
	echo "torch sees no CUDA device here: $PYTHON -c 'import torch; print(torch.version.cuda, torch.cuda.is_available())'"
	exit 2
fi
mkdir -p "$OUT"
failed=()

part() {
	local name=$1
	shift
	[ -e "$OUT/$name.done" ] && return
	echo "== $name: $*"
	if "$@" >"$OUT/$name.log" 2>&1; then
		touch "$OUT/$name.done"
	else
		failed+=("$name")
		tail -n 5 "$OUT/$name.log"
	fi
}

{
	nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
	"$PYTHON" -c 'import platform, timm, torch, triton
print(f"Python {platform.python_version()}, torch {torch.__version__}, triton {triton.__version__}, timm {timm.__version__}")'
} >"$OUT/machine.txt"

part tests "$PYTHON" -m pytest -m gpu
part kernels "$PYTHON" benchmarks/kernels.py --device cuda --pixels 67108864 --result "$OUT/kernels.md"
part transform "$PYTHON" benchmarks/transform.py --device cuda --result "$OUT/transform.md"
part search_step "$PYTHON" -m benchmarks.search_step --data "$CIFAR10" --result "$OUT/search_step.md" \
	model.name=resnet18_cifar model.args={}
part stacked "$PYTHON" -m benchmarks.stacked --result "$OUT/stacked.md"
part digits "$PYTHON" -m accelerate.commands.launch --config_file accelerate_configs/gpu.yaml \
	-m ohl_accel.search digits "run.dir=$OUT/digits" run.overwrite=true
part resnet18 "$PYTHON" -m ohl_accel.compare cifar10_r18 "data.path=$CIFAR10" "outer.steps=$EPOCHS" \
	--policies none,uniform,ohl,uniform-best-of-n,autoaugment,trivialaugment --reference uniform-best-of-n \
	--seeds "$SEEDS" --out "$OUT/resnet18"

[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}; what they printed is in $OUT"; exit 1; }
