# A plan, executed tensor by tensor through the store.


rule quantize:
    input:
        model=lambda w: from_source(w.model),
        manifest=f"{RESULTS}/{{model}}/manifest.tsv",
        plan=f"{RESULTS}/{{model}}/plans/{{recipe}}.tsv",
        report=f"{RESULTS}/{{model}}/plans/{{recipe}}.json",
        imatrix=lambda w: ancient(imatrix_of(w.model)),
        imatrix_report=lambda w: imatrix_report_of(w.model),
    output:
        gguf=f"{RESULTS}/{{model}}/gguf/{{model}}-{{recipe}}.gguf",
        facts=f"{RESULTS}/{{model}}/gguf/{{model}}-{{recipe}}.json",
    log:
        f"{RESULTS}/{{model}}/logs/gguf/{{recipe}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/gguf/{{recipe}}.tsv"
    wildcard_constraints:
        recipe=names(RECIPES - SPLIT),
    conda:
        "../../envs/quantmill.yaml"
    threads: CORES
    resources:
        mem_mb=4000,
    params:
        spec=lambda w: argument(quantize_spec(w.model, w.recipe)),
    message:
        "{wildcards.model}: quantizing {wildcards.recipe}"
    shell:
        "python -m quantmill.quantize.write --spec {params.spec:q} --model {input.model[0]:q}"
        " --manifest {input.manifest:q} --plan {input.plan:q} --report {input.report:q}"
        " --imatrix {input.imatrix:q} --gguf {output.gguf:q} --facts {output.facts:q}"
        " --log {log:q} --memory {resources.mem_mb} --threads {threads}"
        ' --store "$QUANTMILL_STORE" --store-max "$QUANTMILL_STORE_MAX"'


# In several files, below a folder: how many there are its plan knows, and Snakemake need not.
use rule quantize as quantize_split with:
    output:
        gguf=directory(f"{RESULTS}/{{model}}/gguf/{{model}}-{{recipe}}"),
        facts=f"{RESULTS}/{{model}}/gguf/{{model}}-{{recipe}}.json",
    wildcard_constraints:
        recipe=names(SPLIT),
