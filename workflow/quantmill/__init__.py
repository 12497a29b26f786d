"""quantmill: a make-style, declarative build system for GGUF quantizations."""

import os

# No stage multiplies matrices in numpy: starting its BLAS threads would cost each a tenth of a second.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Where ggml aborts it would start a debugger on itself, whose output says nothing to a user.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
