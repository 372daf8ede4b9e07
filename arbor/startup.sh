#!/usr/bin/env bash
# Make a rented machine serve Arbor, and give the machine back when its time is over. May be run again at any time.
#
# Reads ARBOR_DEADLINE (seconds since 1970; without it the machine is never given back) and ARBOR_TRAINING_GPUS.
# Writes everything to /workspace/arbor: startup.log, server.log, jobs and checkpoints; `failed` where it gave up.
# The server listens on 127.0.0.1 only, for it asks nobody who they are. Restart it with: kill "$(cat server.pid)"
set -Eeuo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=${ARBOR_HOME:-/workspace/arbor}
port=${ARBOR_PORT:-7453}
environment=$home/environment
mkdir -p "$home/storage"
# A login over SSH does not see what the machine was rented with.
training_gpus=${ARBOR_TRAINING_GPUS:-$(cat "$home/training_gpus" 2>/dev/null || echo 1)}
echo "$training_gpus" >"$home/training_gpus"

give_back() {
  local query
  while true; do   # until the machine is gone, and this with it: both may say that all is well when nothing is
    echo "$(date -u +%FT%TZ) time is over: giving the machine back"
    runpodctl remove pod "${RUNPOD_POD_ID:-}" || true
    # Its own key, which RunPod puts into every machine. Read from a file descriptor, so that no process list shows it.
    query="{\"query\": \"mutation { podTerminate(input: { podId: \\\"${RUNPOD_POD_ID:-}\\\" }) }\"}"
    curl -fsS -H 'Content-Type: application/json' -H @<(echo "Authorization: Bearer ${RUNPOD_API_KEY:-}") \
      -d "$query" https://api.runpod.io/graphql || true
    sleep 30
  done
}

# Once only, however often this script runs, and whatever becomes of the rest of it.
if [ -n "${ARBOR_DEADLINE:-}" ]; then
  (
    flock -n 9 || exit 0
    while [ "$(date +%s)" -lt "$ARBOR_DEADLINE" ]; do sleep 20; done
    give_back
  ) 9>"$home/deadline.lock" >>"$home/deadline.log" 2>&1 &
fi

# One at a time from here on.
exec 8>"$home/startup.lock"
flock 8
exec > >(tee -a "$home/startup.log") 2>&1
rm -f "$home/failed"
trap 'echo "line $LINENO: $BASH_COMMAND (see $home/startup.log)" >"$home/failed"' ERR
echo "$(date -u +%FT%TZ) startup"

# Versions that were resolved together; transformers 5 breaks trl 0.23.1, which Arbor 0.2.17 needs.
if ! cmp -s "$here/requirements.txt" "$environment/installed.txt"; then
  command -v uv >/dev/null || python3 -m pip install --quiet uv
  uv venv --quiet --clear --python 3.11 "$environment"
  DS_BUILD_OPS=0 uv pip install --quiet --python "$environment/bin/python" --requirement "$here/requirements.txt"
  cp "$here/requirements.txt" "$environment/installed.txt"
fi
packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# The wheel of Arbor 0.2.17 names this file and does not bring it. One GPU needs no sharding.
mkdir -p "$packages/configs"
kind=DEEPSPEED
[ "$training_gpus" -gt 1 ] || kind="'NO'"
sed -e "s/^distributed_type: .*/distributed_type: $kind/" -e "s/^num_processes: .*/num_processes: $training_gpus/" \
  "$here/deepspeed_config.yaml" >"$packages/configs/deepspeed_config.yaml"

cat >"$home/arbor.yaml" <<YAML
storage_path: $home/storage
YAML

export CUDA_DEVICE_ORDER=PCI_BUS_ID      # Arbor counts GPUs as nvidia-smi does; CUDA must count them alike
export WANDB_MODE=disabled               # Arbor imports it, asked or not
export HF_HOME=${HF_HOME:-$home/models}
export NCCL_P2P_DISABLE=${NCCL_P2P_DISABLE:-0}   # 1 where NCCL crashes

# A job that failed to start keeps its GPUs until the server ends: the server is what may be killed, this starts it anew.
(
  flock -n 7 || exit 0
  trap - ERR
  set +e
  while true; do
    "$environment/bin/arbor" serve --host 127.0.0.1 --port "$port" --arbor-config "$home/arbor.yaml" 7>&- &
    echo $! >"$home/server.pid"
    wait $!
    echo "$(date -u +%FT%TZ) the server ended; it starts again in 10 seconds"
    sleep 10 7>&-
  done
) 7>"$home/server.lock" 8>&- >>"$home/server.log" 2>&1 &
echo "$(date -u +%FT%TZ) ready; the server's log is $home/server.log"
