"""The sensitivity of each tensor: quantization errors, probes of the KL divergence, and a model of both."""
