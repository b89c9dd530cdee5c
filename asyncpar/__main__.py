"""`python -m asyncpar`: the same as the program `asyncpar`."""

import sys

from asyncpar.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
