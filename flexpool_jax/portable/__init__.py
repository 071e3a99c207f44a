"""Weights in and out: safetensors files, PyTorch's names, and exported programs."""
