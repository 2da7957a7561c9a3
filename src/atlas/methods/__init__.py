"""The papers, one package each: the mathematics as a library, and ``entry.py`` that plugs it into its task."""
