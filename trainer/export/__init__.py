"""Export a run: a SavedModel and other formats, each proven to answer like the run's model.

`exporting.export` tells the story; `probe` is what loads the files in a process of its own.
"""
