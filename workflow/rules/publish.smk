# A repository takes files up to a size; how those above it are called there is on the card.
rule name_parts:
    input:
        ggufs=lambda w: ancient([gguf_of(w.model, recipe) for recipe in cfg.recipes_of(w.model)]),
        facts=lambda w: [of(w.model, f"gguf/{w.model}-{r}.json") for r in cfg.recipes_of(w.model)],
    output:
        f"{RESULTS}/{{model}}/parts.json",
    log:
        f"{RESULTS}/{{model}}/logs/parts.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/parts.tsv"
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=lambda w: argument(parts_spec(w.model)),
    message:
        "{wildcards.model}: names of the files in the repository"
    shell:
        "python -m quantmill.publish.split --spec {params.spec:q} --out {output:q}"
        " --log {log:q} --memory {resources.mem_mb}"
        f" --results {RESULTS_WORD}/{{wildcards.model}}"


# What is made, for those who download it: shown; and uploaded with --config confirm=yes. It has no
# output, so that it is done whenever it is asked for, and never as a part of anything else.


rule publish:
    input:
        [file for model in PUBLISHED for file in results_of(model)],
    log:
        f"{RESULTS}/logs/publish.log",
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    params:
        spec=lambda w: argument(publish_spec()),
    message:
        "publishing"
    shell:
        "python -m quantmill.publish.upload --spec {params.spec:q}"
        f" --results {RESULTS_WORD} --log {{log:q}}"
