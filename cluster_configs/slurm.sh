#!/usr/bin/env bash
# One run as one Slurm job: a Ray node on every Slurm node, the first SAMPLER_NODES of them for samplers (default: all
# but one), the others for learners. The arguments are those of `negalign-ray train`. Submit it in the root of the
# repository, on a file system that all nodes see:
#   sbatch --nodes=3 cluster_configs/slurm.sh --preset d2o --set data.path=my_negatives.jsonl --set samplers.num=2
#SBATCH --job-name=negalign
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --exclusive
#SBATCH --output=%x-%j.log
set -euo pipefail

cd "$SLURM_SUBMIT_DIR"
if ((SLURM_NNODES < 2)); then
  echo "slurm.sh: --nodes=$SLURM_NNODES, but samplers and learners need a node each; ask for 2 or more." >&2
  exit 2
fi
export PATH="$PWD/.venv/bin:$PATH"
export SAMPLER_NODES="${SAMPLER_NODES:-$((SLURM_NNODES - 1))}"
export ROLES="${ROLES:-cluster_configs/roles_gpu.yaml}" # on CPUs: cluster_configs/roles.yaml
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # srun does not take it over from sbatch

# A token for this job alone, in a file that only its owner can read.
mkdir -p "$HOME/.ray"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/negalign-$SLURM_JOB_ID.token"
unset RAY_AUTH_TOKEN # it would win over the file
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
(umask 077 && od -An -vtx1 -N32 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export RAY_ADDRESS="${hosts[0]}:6379"
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds

# Starts Ray on every node, runs the command on the first one, and stops Ray again.
# shellcheck disable=SC2016  # expanded on the nodes
srun bash -c '
  role=learner
  if ((SLURM_NODEID < SAMPLER_NODES)); then role=sampler; fi
  exec ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_NNODES" --num-cpus="$SLURM_CPUS_PER_TASK" \
    --dashboard-host=127.0.0.1 --labels="role=$role" -- negalign-ray train --config "$ROLES" "$@"
' node "$@"
