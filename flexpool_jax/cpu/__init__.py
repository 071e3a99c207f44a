"""What makes XLA's CPU backend fast. Importing it does not import JAX."""

from flexpool_jax.cpu.process import prepare_process

__all__ = ["prepare_process"]
