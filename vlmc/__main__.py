"""``python -m vlmc``: the command line, where the script is not on the path."""

from vlmc.cli import script

if __name__ == "__main__":
    script()
