"""Search for the values of a config that train best.

keras-tuner's oracles choose the points; everything else is this project's own: a trial is a
run directory, and what is in the trials' directories is the truth, from which a search goes
on whatever was killed.
"""
