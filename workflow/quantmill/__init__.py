"""quantmill: a make-style, declarative build system for GGUF quantizations."""
