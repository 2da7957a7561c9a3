"""``python -m atlas``: the command line, for places where the ``atlas`` script is not on the path, as in jobs of the workflow."""

import sys

from atlas.warm import hand_over

if __name__ == "__main__":
    hand_over(sys.argv[1:])

    from atlas.cli import main

    main()
