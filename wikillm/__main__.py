"""`python -m wikillm` is `wikillm`."""

import sys

from wikillm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
