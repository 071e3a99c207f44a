"""Many runs and what they say together: sweeps over a grid, and the report on their results.

Nothing here imports JAX. A sweep starts a process for each run, and a report only reads files.
"""
