"""What the Snakemake rules know: the checked config, the files, a spec for every output, the targets.

Plain Python, tested without Snakemake. Only this package and the rules read the config.
"""
