"""`python -m wikillm` is `wikillm`."""

from wikillm.cli.main import program

if __name__ == "__main__":
    program()
