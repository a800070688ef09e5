"""`wikillm train` as a file, for `deepspeed train.py ...` and `torchrun train.py ...`."""

import sys

from wikillm.cli.main import program

if __name__ == "__main__":
    program(["train", *sys.argv[1:]])
