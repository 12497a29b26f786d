# quantmill: from a source GGUF to quantizations, measured and described.
# Edit config.yaml; then `snakemake --cores all` makes what is missing or stale.


include: "workflow/Snakefile"


# What is included sets no default target of its own.
workflow.default_target = "all"
