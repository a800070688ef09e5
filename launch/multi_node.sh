#!/usr/bin/env bash
# DeepSpeed on 2 nodes, 16 GPUs.
# Forwarded through .deepspeed_env: nothing.
# Written by: wikillm launch hostfile --hostfile launch/hostfile --workdir /srv/wikillm --config pretrain-7b --deepspeed zero2 data.path=corpus --print
set -euo pipefail
pids=()
ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -o ServerAliveCountMax=3 -tt -- node1 '{ cd /srv/wikillm || { echo wikillm: node1 has no /srv/wikillm; exit 3; }; } && PATH="$PWD/.venv/bin:$PATH" && { [ -e train.py ] || { echo wikillm: node1 has no train.py in /srv/wikillm; exit 3; }; } && { [ -f launch/hostfile ] || { echo wikillm: node1 has no launch/hostfile in /srv/wikillm; exit 3; }; } && { command -v deepspeed >/dev/null || { echo wikillm: node1 has no deepspeed in /srv/wikillm; exit 3; }; } && export WIKILLM_NODES=node1,node2 && exec deepspeed --quiet --hostfile launch/hostfile --no_ssh --node_rank 0 --master_addr node1 --master_port 29500 train.py --config pretrain-7b --deepspeed zero2 data.path=corpus' </dev/null &
pids+=($!)
ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -o ServerAliveCountMax=3 -tt -- node2 '{ cd /srv/wikillm || { echo wikillm: node2 has no /srv/wikillm; exit 3; }; } && PATH="$PWD/.venv/bin:$PATH" && { [ -e train.py ] || { echo wikillm: node2 has no train.py in /srv/wikillm; exit 3; }; } && { [ -f launch/hostfile ] || { echo wikillm: node2 has no launch/hostfile in /srv/wikillm; exit 3; }; } && { command -v deepspeed >/dev/null || { echo wikillm: node2 has no deepspeed in /srv/wikillm; exit 3; }; } && export WIKILLM_NODES=node1,node2 && exec deepspeed --quiet --hostfile launch/hostfile --no_ssh --node_rank 1 --master_addr node1 --master_port 29500 train.py --config pretrain-7b --deepspeed zero2 data.path=corpus' </dev/null &
pids+=($!)
code=0
# After the first failure the supervisor has 15 s to end the other nodes and report why.
for _ in "${pids[@]}"; do wait -n || { code=$?; break; }; done
for _ in {1..15}; do if [ -z "$(jobs -rp)" ]; then break; fi; sleep 1; done
kill "${pids[@]}" 2>/dev/null || true
wait || true
exit "$code"
