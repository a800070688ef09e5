#!/usr/bin/env bash
# One GPU. Further arguments go to the run.
# Written by: wikillm launch single --deepspeed zero2 --print
set -euo pipefail
exec deepspeed --quiet --num_gpus 1 --master_port 29500 train.py --deepspeed zero2 "$@"
