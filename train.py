"""What `deepspeed train.py --deepspeed ds_configs/zero2.json` starts; the same function as `wikillm train`."""

import sys

from wikillm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
