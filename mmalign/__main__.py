"""``python -m mmalign``: the command line without an installed script."""

from mmalign.cli import main

if __name__ == "__main__":
    main()
