"""NVFP4: its arithmetic, and how a GGUF holds it."""
