#!/usr/bin/env bash
# Two Ray nodes on this machine, one for samplers and one for learners: a rehearsal for a cluster, without GPUs, which
# both nodes would count. With a command they serve it and are stopped after it; without one they stay until Ctrl-C,
# and what other shells need is printed.
#   cluster_configs/local_two_nodes.sh negalign-ray train --preset quickstart --config cluster_configs/roles.yaml
# Variables: FIRST_PORT (200 ports from there on), CPUS (of each node), OBJECT_STORE_BYTES (of each node).
set -euo pipefail

first_port="${FIRST_PORT:-16379}"
cpus="${CPUS:-$((($(nproc) + 1) / 2))}"
store_bytes="${OBJECT_STORE_BYTES:-$((2 * 1024 ** 3))}"
root="$(cd "$(dirname "$0")/.." && pwd)"
export PATH="$PATH:$root/.venv/bin"

# Private, and short: the sockets below it may have paths of at most 107 bytes.
folder="$(mktemp -d /tmp/negalign.XXXXXX)"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/token" RAY_ADDRESS="127.0.0.1:$first_port"
export RAY_USAGE_STATS_ENABLED=0
unset RAY_AUTH_TOKEN # it would win over the file
(umask 077 && od -An -vtx1 -N32 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

nodes=()
# `ray stop` would also stop other clusters of this user; `ray start --block` takes its own node along when it ends.
# shellcheck disable=SC2329  # the trap calls it
stop() {
  trap '' INT TERM
  if ((${#nodes[@]})); then
    kill "${nodes[@]}" 2>/dev/null || true
    wait "${nodes[@]}" 2>/dev/null || true
  fi
  rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start_node ROLE PORT ARGUMENT...: one node with its own ports, PORT + 1 to PORT + 99. Returns when it has joined.
start_node() {
  local role="$1" port="$2" log="$folder/$1.log"
  shift 2
  ray start --block "$@" --labels="role=$role" --num-cpus="$cpus" --num-gpus=0 --object-store-memory="$store_bytes" \
    --temp-dir="$folder/ray" --dashboard-host=127.0.0.1 \
    --node-manager-port=$((port + 1)) --object-manager-port=$((port + 2)) --runtime-env-agent-port=$((port + 3)) \
    --dashboard-agent-listen-port=$((port + 4)) --dashboard-agent-grpc-port=$((port + 5)) \
    --metrics-export-port=$((port + 6)) --min-worker-port=$((port + 20)) --max-worker-port=$((port + 99)) \
    >"$log" 2>&1 &
  nodes+=($!)
  for ((tenths = 0; tenths < 1200; tenths++)); do
    if grep -qs "Ray runtime started" "$log"; then return; fi
    if ! kill -0 "${nodes[-1]}" 2>/dev/null; then break; fi
    sleep 0.1
  done
  cat "$log" >&2
  echo "local_two_nodes.sh: the $role node did not start; are ports $port to $((port + 99)) free?" \
    "FIRST_PORT=N moves them." >&2
  exit 1
}
dashboard_port=$((first_port + 7))
start_node sampler "$first_port" --head --port="$first_port" --dashboard-port="$dashboard_port"
start_node learner $((first_port + 100)) --address="$RAY_ADDRESS"

if (($#)); then
  "$@"
  exit
fi
cat <<END
Two nodes are up, with $cpus CPU(s) each: role=sampler and role=learner. In another shell:

  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH RAY_ADDRESS=$RAY_ADDRESS
  negalign-ray train --preset quickstart --config cluster_configs/roles.yaml

Dashboard: http://127.0.0.1:$dashboard_port (it asks for the token). Ctrl-C stops both.
END
wait -n "${nodes[@]}" || true
echo "local_two_nodes.sh: a node has ended by itself; stopping the other one." >&2
exit 1
