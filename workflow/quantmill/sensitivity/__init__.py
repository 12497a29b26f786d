"""What each tensor is worth: quantization errors, probes of the KL divergence, and a model of both."""
