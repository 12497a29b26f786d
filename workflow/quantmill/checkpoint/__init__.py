"""Hugging Face checkpoints: safetensors read, quantized to NVFP4, written and checked; no GGUF, no torch."""
