"""Training: optimiser and schedule, state, pmapped steps, the loop, checkpoints and the log."""

from flexpool_jax.training.train import train

__all__ = ["train"]
