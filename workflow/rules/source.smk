# The source model: fetched where it lies elsewhere, or converted, then listed.


rule fetch_source:
    output:
        gguf=f"{RESULTS}/{{model}}/source/{{file}}",
        facts=f"{RESULTS}/{{model}}/source/{{file}}.json",
    log:
        f"{RESULTS}/{{model}}/logs/fetch/{{file}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/fetch/{{file}}.tsv"
    wildcard_constraints:
        model=names(HUB),
    conda:
        "../../envs/quantmill.yaml"
    params:
        spec=lambda w: argument(fetch_spec(w.model, w.file)),
    message:
        "{wildcards.model}: fetching {wildcards.file}"
    shell:
        "python -m quantmill.model.fetch --spec {params.spec:q}"
        " --gguf {output.gguf:q} --facts {output.facts:q} --log {log:q}"


rule convert_checkpoint:
    input:
        config=lambda w: ancient(os.path.join(CHECKPOINTS[w.model].checkpoint, "config.json")),
        files=lambda w: ancient([str(path) for path in CHECKPOINTS[w.model].files]),
    output:
        gguf=f"{RESULTS}/{{model}}/source/{{model}}.gguf",
        facts=f"{RESULTS}/{{model}}/source/{{model}}.gguf.json",
    log:
        f"{RESULTS}/{{model}}/logs/convert.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/convert.tsv"
    wildcard_constraints:
        model=names(model for model in CONVERTED if CHECKPOINTS[model].keep),
    priority: 20
    conda:
        "../../envs/quantmill.yaml"
    threads: CORES
    resources:
        mem_mb=8000,
    params:
        spec=lambda w: argument(convert_spec(w.model)),
    message:
        "{wildcards.model}: converting the checkpoint to GGUF"
    shell:
        "python -m quantmill.checkpoint.convert --spec {params.spec:q}"
        ' --source "$(dirname {input.config:q})" --converter "$QUANTMILL_CONVERTER"'
        " --gguf {output.gguf:q} --facts {output.facts:q} --log {log:q} --memory {resources.mem_mb}"


use rule convert_checkpoint as convert_checkpoint_for_now with:
    output:
        gguf=temp(f"{RESULTS}/{{model}}/source/{{model}}.gguf"),
        facts=f"{RESULTS}/{{model}}/source/{{model}}.gguf.json",
    wildcard_constraints:
        model=names(model for model in CONVERTED if not CHECKPOINTS[model].keep),


# First of all, from the header: it takes less than a second, and what it refuses need not be begun.
rule check_source:
    input:
        model=lambda w: from_source(w.model),
    output:
        f"{RESULTS}/{{model}}/check.json",
    log:
        f"{RESULTS}/{{model}}/logs/check.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/check.tsv"
    priority: 100
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=lambda w: argument(check_spec(w.model)),
    message:
        "{wildcards.model}: checking that llama.cpp loads the source"
    shell:
        "python -m quantmill.check.source --spec {params.spec:q} --model {input.model[0]:q}"
        ' --asked "$QUANTMILL_ASKED" --out {output:q} --log {log:q} --memory {resources.mem_mb}'


rule list_tensors:
    input:
        model=lambda w: from_source(w.model),
    output:
        manifest=f"{RESULTS}/{{model}}/manifest.tsv",
        facts=f"{RESULTS}/{{model}}/model.json",
    log:
        f"{RESULTS}/{{model}}/logs/manifest.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/manifest.tsv"
    priority: 50
    conda:
        "../../envs/quantmill.yaml"
    threads: CORES
    resources:
        mem_mb=1000,
    params:
        spec=lambda w: argument(manifest_spec(w.model)),
    message:
        "{wildcards.model}: listing the source's tensors"
    shell:
        "python -m quantmill.model.manifest --spec {params.spec:q} --model {input.model[0]:q}"
        " --manifest {output.manifest:q} --facts {output.facts:q}"
        " --log {log:q} --memory {resources.mem_mb} --threads {threads}"
