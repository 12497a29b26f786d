"""Whether an engine computes what it should on this machine: small models against a numpy evaluation."""
