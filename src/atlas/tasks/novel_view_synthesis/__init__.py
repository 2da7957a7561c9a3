"""Novel view synthesis: a scene is known from one posed image, and held-out poses are rendered.

A scene is a reference view with depth, test views, and where known the views between. Methods are
:class:`~atlas.tasks.novel_view_synthesis.reconstruction.Reconstruction` objects: they step, and they render.
"""
