"""Exported programs and model cards."""
