#!/bin/bash
# Several nodes under SLURM: sbatch launch/slurm.sh RECIPE [further arguments of `linearard train`]
# Recipe, data, cache and output lie on a file system that all nodes share. A job that was ended is submitted
# again as it was: --resume begins where it left off, or at the beginning.
#SBATCH --job-name=linearard
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
# SIGTERM 120 s before the end: the step is finished, and its state saved.
#SBATCH --signal=B:TERM@120
set -euo pipefail

host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
processes=${SLURM_GPUS_ON_NODE:-8}

# One launcher a node. A process that dies ends its launcher, and that ends the job.
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$processes" \
  --rdzv-backend c10d --rdzv-endpoint "$host:29500" --rdzv-id "$SLURM_JOB_ID" \
  -m linearard train "$@" --resume &
trap 'kill -TERM $(jobs -p)' TERM
# The first wait ends when the signal comes.
wait || wait
