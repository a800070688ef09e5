#!/usr/bin/env bash
# DeepSpeed on 2 nodes, 16 GPUs.
# Forwarded through .deepspeed_env: nothing.
# Written by: wikillm launch hostfile --hostfile launch/hostfile --workdir /srv/wikillm --config pretrain-7b --deepspeed zero2 data.path=corpus --print
set -euo pipefail
pids=()
ssh -o BatchMode=yes -o ConnectTimeout=10 -tt -- node1 'cd /srv/wikillm && PATH="$PWD/.venv/bin:$PATH" && exec deepspeed --hostfile launch/hostfile --no_ssh --node_rank 0 --master_addr node1 --master_port 29500 train.py --config pretrain-7b --deepspeed zero2 data.path=corpus' </dev/null &
pids+=($!)
ssh -o BatchMode=yes -o ConnectTimeout=10 -tt -- node2 'cd /srv/wikillm && PATH="$PWD/.venv/bin:$PATH" && exec deepspeed --hostfile launch/hostfile --no_ssh --node_rank 1 --master_addr node1 --master_port 29500 train.py --config pretrain-7b --deepspeed zero2 data.path=corpus' </dev/null &
pids+=($!)
code=0
for _ in "${pids[@]}"; do wait -n || { code=$?; kill "${pids[@]}" 2>/dev/null || true; break; }; done
wait || true
exit "$code"
