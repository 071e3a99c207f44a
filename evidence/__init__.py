"""Computes the results of docs/evidence.md: its runs, contrasts, figures and the page itself."""
