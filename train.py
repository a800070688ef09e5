"""`wikillm train` as a file, for `deepspeed train.py ...` and `torchrun train.py ...`."""

import sys

from wikillm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
