"""`python -m asyncpar`: the same as the program `asyncpar`."""

from asyncpar.cli.main import entry

if __name__ == "__main__":
    entry()
