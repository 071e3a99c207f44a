"""Benchmarks: one program for each question, described in README.md."""
