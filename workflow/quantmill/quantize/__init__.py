"""Executes a plan with the native kernels, through the store."""
