"""Triton kernels for the row flows of a mixer, on NVIDIA GPUs."""
