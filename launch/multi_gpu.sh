#!/usr/bin/env bash
# All GPUs of this node. Further arguments go to the run.
# Written by: wikillm launch multi --deepspeed zero2 --print
set -euo pipefail
exec deepspeed --quiet --master_port 29500 train.py --deepspeed zero2 "$@"
