# A Hugging Face checkpoint, its MLP weights as NVFP4.


rule export_checkpoint:
    input:
        config=lambda w: ancient(os.path.join(CHECKPOINTS[w.model].checkpoint, "config.json")),
        files=lambda w: ancient([str(path) for path in CHECKPOINTS[w.model].files]),
    output:
        # The weights go by the names of the source's: this is there whatever they are.
        config=f"{RESULTS}/{{model}}/checkpoint/{{model}}-{{recipe}}/config.json",
        report=f"{RESULTS}/{{model}}/checkpoint/{{model}}-{{recipe}}.json",
    log:
        f"{RESULTS}/{{model}}/logs/checkpoint/{{recipe}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/checkpoint/{{recipe}}.tsv"
    wildcard_constraints:
        model=names(EXPORTED),
        recipe=names(recipe for recipes in EXPORTED.values() for recipe in recipes),
    conda:
        "../../envs/quantmill.yaml"
    threads: CORES
    resources:
        mem_mb=4000,
    params:
        spec=lambda w: export_spec(w.model, w.recipe),
    message:
        "{wildcards.model}: NVFP4 checkpoint {wildcards.recipe}"
    shell:
        "python -m quantmill.checkpoint.export --spec {params.spec:q} "
        ' --source "$(dirname {input.config:q})"'
        f" --out {RESULTS_WORD}/{{wildcards.model}}/checkpoint/{{wildcards.model}}-{{wildcards.recipe}}"
        " --report {output.report:q} --log {log:q} --threads {threads}"


# In the checkpoint's folder, which an export makes anew: so it comes after each.
rule write_checkpoint_card:
    input:
        f"{RESULTS}/{{model}}/checkpoint/{{model}}-{{recipe}}.json",
    output:
        f"{RESULTS}/{{model}}/checkpoint/{{model}}-{{recipe}}/README.md",
    log:
        f"{RESULTS}/{{model}}/logs/checkpoint/{{recipe}}-card.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/checkpoint/{{recipe}}-card.tsv"
    wildcard_constraints:
        model=names(EXPORTED),
        recipe=names(recipe for recipes in EXPORTED.values() for recipe in recipes),
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=500,
    params:
        spec=lambda w: checkpoint_card_spec(w.model, w.recipe),
    message:
        "{wildcards.model}: card of the checkpoint {wildcards.recipe}"
    shell:
        "python -m quantmill.card.checkpoint --spec {params.spec:q} --report {input:q} --card {output:q}"
        " --log {log:q}"
