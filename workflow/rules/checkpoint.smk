# A Hugging Face checkpoint, its MLP weights as NVFP4.


rule export_checkpoint:
    input:
        config=lambda w: ancient(os.path.join(CHECKPOINTS[w.model].source.checkpoint, "config.json")),
        files=lambda w: ancient([str(path) for path in CHECKPOINTS[w.model].source.files]),
    output:
        # The weights go by the names of the source's: these are there whatever they are.
        config=f"{RESULTS}/{{model}}/checkpoint/{{model}}-{{recipe}}/config.json",
        quantization=f"{RESULTS}/{{model}}/checkpoint/{{model}}-{{recipe}}/hf_quant_config.json",
        report=f"{RESULTS}/{{model}}/checkpoint/{{model}}-{{recipe}}.json",
    log:
        f"{RESULTS}/{{model}}/logs/checkpoint/{{recipe}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/checkpoint/{{recipe}}.tsv"
    wildcard_constraints:
        model=names(CHECKPOINTS),
        recipe=names(recipe for model in CHECKPOINTS for recipe in given.recipes_of(model)),
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
