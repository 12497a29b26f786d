# quantmill: from a source GGUF to quantizations, measured and described.
# Edit config.yaml; then `snakemake --cores all` makes what is missing or stale.
from snakemake.utils import min_version

min_version("9.27")


# Snakemake would merge the default config with one given by --configfile; here
# the given one replaces it, so that no default model leaks into another run.
if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/specs.smk"


rule all:
    default_target: True
    input:
        every(results_of),
        exports(),


rule cards:
    input:
        every(cards_of),


rule quants:
    input:
        every(checks_of),
        every(quants_of),


rule plans:
    input:
        every(plans_of),


rule checkpoints:
    input:
        exports(),


rule imatrices:
    input:
        every(checks_of),
        every(imatrices_of),


rule sensitivities:
    input:
        every(checks_of),
        every(sensitivities_of),


include: "workflow/rules/source.smk"
include: "workflow/rules/corpus.smk"
include: "workflow/rules/imatrix.smk"
include: "workflow/rules/sensitivity.smk"
include: "workflow/rules/budget.smk"
include: "workflow/rules/recipe.smk"
include: "workflow/rules/quantize.smk"
include: "workflow/rules/bench.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/card.smk"
include: "workflow/rules/checkpoint.smk"
include: "workflow/rules/publish.smk"


onsuccess:
    tell_warnings()


onerror:
    tell_errors()
