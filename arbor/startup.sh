#!/usr/bin/env bash
# Start the Arbor server on a rented machine, and terminate the machine at its deadline. It may be run again at any time.
#
# Reads ARBOR_DEADLINE (seconds since 1970; without it the machine is never terminated) and ARBOR_TRAINING_GPUS.
# Writes everything to /workspace/arbor: startup.log, server.log, jobs and checkpoints, and `failed` after an error.
# The server has no authentication, so it listens on 127.0.0.1 only. Restart it with: kill "$(cat server.pid)"
set -Eeuo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=${ARBOR_HOME:-/workspace/arbor}
port=${ARBOR_PORT:-7453}
environment=$home/environment
mkdir -p "$home/storage"
# A login over SSH does not see the variables with which the machine was rented.
training_gpus=${ARBOR_TRAINING_GPUS:-$(cat "$home/training_gpus" 2>/dev/null || echo 1)}
echo "$training_gpus" >"$home/training_gpus"

terminate() {
  local query
  while true; do   # until the machine is gone: both commands may report success although they failed
    echo "$(date -u +%FT%TZ) deadline reached: terminating the machine"
    runpodctl pod delete "${RUNPOD_POD_ID:-}" || true
    runpodctl remove pod "${RUNPOD_POD_ID:-}" || true   # the spelling of older versions
    # The machine's own key, which RunPod sets on every machine. A file descriptor keeps it out of the process list.
    query="{\"query\": \"mutation { podTerminate(input: { podId: \\\"${RUNPOD_POD_ID:-}\\\" }) }\"}"
    curl -fsS -H 'Content-Type: application/json' -H @<(echo "Authorization: Bearer ${RUNPOD_API_KEY:-}") \
      -d "$query" https://api.runpod.io/graphql || true
    sleep 30
  done
}

# Only one watcher runs, however often this script is started.
if [ -n "${ARBOR_DEADLINE:-}" ]; then
  (
    flock -n 9 || exit 0
    while [ "$(date +%s)" -lt "$ARBOR_DEADLINE" ]; do sleep 20; done
    terminate
  ) 9>"$home/deadline.lock" >>"$home/deadline.log" 2>&1 &
fi

# From here on, only one copy of this script runs at a time.
exec 8>"$home/startup.lock"
flock 8
exec > >(tee -a "$home/startup.log") 2>&1
rm -f "$home/failed"
trap 'echo "line $LINENO: $BASH_COMMAND (see $home/startup.log)" >"$home/failed"' ERR
echo "$(date -u +%FT%TZ) startup"

# One GPU trains with TRL (train.py --backend trl): an environment with PyTorch, and no server.
if [ "$training_gpus" -eq 0 ]; then
  command -v uv >/dev/null || python3 -m pip install --quiet uv
  [ -x "$environment/bin/python" ] || uv venv --quiet --seed --python 3.11 "$environment"
  uv pip install --quiet --python "$environment/bin/python" torch
  date -u +%FT%TZ >"$home/ready"
  echo "$(date -u +%FT%TZ) ready for train.py --backend trl"
  exit 0
fi

# Versions that were resolved together; transformers 5 breaks trl 0.23.1, which Arbor 0.2.17 needs.
if ! cmp -s "$here/requirements.txt" "$environment/installed.txt"; then
  command -v uv >/dev/null || python3 -m pip install --quiet uv
  uv venv --quiet --clear --python 3.11 "$environment"
  DS_BUILD_OPS=0 uv pip install --quiet --python "$environment/bin/python" --requirement "$here/requirements.txt"
  cp "$here/requirements.txt" "$environment/installed.txt"
fi
packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# The wheel of Arbor 0.2.17 needs this file but lacks it. One GPU needs no sharding.
mkdir -p "$packages/configs"
kind=DEEPSPEED
[ "$training_gpus" -gt 1 ] || kind="'NO'"
sed -e "s/^distributed_type: .*/distributed_type: $kind/" -e "s/^num_processes: .*/num_processes: $training_gpus/" \
  "$here/deepspeed_config.yaml" >"$packages/configs/deepspeed_config.yaml"

cat >"$home/arbor.yaml" <<YAML
storage_path: $home/storage
YAML

export CUDA_DEVICE_ORDER=PCI_BUS_ID      # number GPUs as nvidia-smi and Arbor do
export WANDB_MODE=disabled               # Arbor always imports it
export HF_HOME=${HF_HOME:-$home/models}
export NCCL_P2P_DISABLE=${NCCL_P2P_DISABLE:-0}   # set to 1 if NCCL crashes

# A job that failed to start keeps its GPUs until the server ends. The server may be killed; this loop restarts it.
(
  flock -n 7 || exit 0
  trap - ERR
  set +e
  while true; do
    "$environment/bin/arbor" serve --host 127.0.0.1 --port "$port" --arbor-config "$home/arbor.yaml" 7>&- &
    echo $! >"$home/server.pid"
    wait $!
    echo "$(date -u +%FT%TZ) the server ended; restarting in 10 seconds"
    sleep 10 7>&-
  done
) 7>"$home/server.lock" 8>&- >>"$home/server.log" 2>&1 &
echo "$(date -u +%FT%TZ) startup done; the server's log is $home/server.log"
