"""The files between stages: what each holds, how it is written, read and checked."""
