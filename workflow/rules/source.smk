# The source model: fetched where it lies elsewhere, then listed.


rule fetch_source:
    output:
        gguf=f"{RESULTS}/{{model}}/source/{{file}}",
        facts=f"{RESULTS}/{{model}}/source/{{file}}.json",
    log:
        f"{RESULTS}/{{model}}/logs/fetch/{{file}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/fetch/{{file}}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    params:
        spec=lambda w: fetch_spec(w.model, w.file),
    message:
        "{wildcards.model}: fetching {wildcards.file}"
    shell:
        "python -m quantmill.model.fetch --spec {params.spec:q}"
        " --gguf {output.gguf:q} --facts {output.facts:q} --log {log:q}"


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
    conda:
        "../../envs/quantmill.yaml"
    threads: CORES
    resources:
        mem_mb=1000,
    params:
        spec=lambda w: manifest_spec(w.model),
    message:
        "{wildcards.model}: listing the source's tensors"
    shell:
        "python -m quantmill.model.manifest --spec {params.spec:q} --model {input.model[0]:q}"
        " --manifest {output.manifest:q} --facts {output.facts:q} --log {log:q} --threads {threads}"
