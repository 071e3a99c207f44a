"""Exported programs, model cards, and images of other sizes."""
