# A Hugging Face checkpoint, its MLP weights as NVFP4.


# Of those checkpoints alone whose activations are to become NVFP4 too.
rule calibrate_activations:
    input:
        model=lambda w: from_source(w.model),
        corpus=lambda w: corpora_of(w.model, [calibration_of(w.model).corpus]),
        report=lambda w: reports_of(w.model, [calibration_of(w.model).corpus]),
    output:
        f"{RESULTS}/{{model}}/activations.json",
    log:
        f"{RESULTS}/{{model}}/logs/activations.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/activations.tsv"
    wildcard_constraints:
        model=names(CONVERTED & EXPORTED.keys()),
    conda:
        "../../envs/quantmill.yaml"
    threads: CORES
    resources:
        mem_mb=lambda w: megabytes(w.model, 1.2, 2000),
    params:
        spec=lambda w: argument(activations_spec(w.model)),
    message:
        "{wildcards.model}: the largest inputs of the MLP weights"
    shell:
        "python -m quantmill.checkpoint.calibrate --spec {params.spec:q} --model {input.model[0]:q}"
        " --corpus {input.corpus:q} --activations {output:q}"
        " --log {log:q} --memory {resources.mem_mb} --threads {threads}"
        ' --store "$QUANTMILL_STORE" --store-max "$QUANTMILL_STORE_MAX"'


rule export_checkpoint:
    input:
        config=lambda w: ancient(os.path.join(CHECKPOINTS[w.model].checkpoint, "config.json")),
        files=lambda w: ancient([str(path) for path in CHECKPOINTS[w.model].files]),
        activations=lambda w: activations_of(w.model, w.recipe),
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
        spec=lambda w: argument(export_spec(w.model, w.recipe)),
    message:
        "{wildcards.model}: NVFP4 checkpoint {wildcards.recipe}"
    shell:
        "python -m quantmill.checkpoint.export --spec {params.spec:q} "
        ' --source "$(dirname {input.config:q})" --activations {input.activations:q}'
        f" --out {RESULTS_WORD}/{{wildcards.model}}/checkpoint/{{wildcards.model}}-{{wildcards.recipe}}"
        " --report {output.report:q} --log {log:q} --memory {resources.mem_mb} --threads {threads}"


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
        spec=lambda w: argument(checkpoint_card_spec(w.model, w.recipe)),
    message:
        "{wildcards.model}: card of the checkpoint {wildcards.recipe}"
    shell:
        "python -m quantmill.card.checkpoint --spec {params.spec:q} --report {input:q} --card {output:q}"
        " --log {log:q} --memory {resources.mem_mb}"
