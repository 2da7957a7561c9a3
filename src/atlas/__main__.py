"""``python -m atlas``: the command line, for places where the ``atlas`` script is not on the path."""

from atlas.cli import main

if __name__ == "__main__":
    main()
