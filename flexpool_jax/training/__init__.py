"""Training: optimiser and schedule, state, pmapped steps, the loop, checkpoints and the log."""
