"""Sweeps: a grid of runs, and the processes that train them one after the other."""
