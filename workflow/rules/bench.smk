# What is measured of each file; the row `source` is the source itself.


# The source's own job makes its predictions, with which all others are compared; they
# are in the store, and made again where it has lost them. Only then is the source needed.
rule measure_divergence:
    input:
        model=lambda w: from_gguf(w.model, w.row),
        facts=lambda w: facts_of(w.model, w.row),
        reference=lambda w: from_source(w.model),
        reference_facts=lambda w: facts_of(w.model, "source"),
        corpus=lambda w: corpora_of(w.model, [measured_on(w.model, "kld").corpus]),
        report=lambda w: reports_of(w.model, [measured_on(w.model, "kld").corpus]),
        floor=lambda w: floor_of(w.model, w.row),
    output:
        f"{RESULTS}/{{model}}/bench/{{row}}/kld.json",
    log:
        f"{RESULTS}/{{model}}/logs/kld/{{row}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/kld/{{row}}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    threads: CORES
    resources:
        mem_mb=lambda w: megabytes(w.model, 1.0, 3000),
    params:
        spec=lambda w: argument(divergence_spec(w.model, w.row)),
    message:
        "{wildcards.model}: KL divergence of {wildcards.row}"
    shell:
        "python -m quantmill.measure.divergence --spec {params.spec:q} --model {input.model[0]:q}"
        " --facts {input.facts:q} --reference {input.reference[0]:q}"
        " --reference-facts {input.reference_facts:q} --corpus {input.corpus:q} --out {output:q}"
        " --log {log:q} --memory {resources.mem_mb} --threads {threads}"
        ' --store "$QUANTMILL_STORE" --store-max "$QUANTMILL_STORE_MAX"'


rule measure_perplexity:
    input:
        model=lambda w: from_gguf(w.model, w.row),
        facts=lambda w: facts_of(w.model, w.row),
        corpus=lambda w: corpora_of(w.model, [measured_on(w.model, "perplexity").corpus]),
        report=lambda w: reports_of(w.model, [measured_on(w.model, "perplexity").corpus]),
        after=lambda w: evaluated_by(w.model, w.row),
    output:
        f"{RESULTS}/{{model}}/bench/{{row}}/perplexity.json",
    log:
        f"{RESULTS}/{{model}}/logs/perplexity/{{row}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/perplexity/{{row}}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    threads: CORES
    resources:
        mem_mb=lambda w: megabytes(w.model, 1.0, 2000),
    params:
        spec=lambda w: argument(perplexity_spec(w.model, w.row)),
    message:
        "{wildcards.model}: perplexity of {wildcards.row}"
    shell:
        "python -m quantmill.measure.perplexity --spec {params.spec:q} --model {input.model[0]:q}"
        " --facts {input.facts:q} --corpus {input.corpus:q} --out {output:q}"
        " --log {log:q} --memory {resources.mem_mb} --threads {threads}"
        ' --store "$QUANTMILL_STORE" --store-max "$QUANTMILL_STORE_MAX"'


rule measure_speed:
    input:
        model=lambda w: from_gguf(w.model, w.row),
        facts=lambda w: facts_of(w.model, w.row),
    output:
        f"{RESULTS}/{{model}}/bench/{{row}}/speed.json",
    log:
        f"{RESULTS}/{{model}}/logs/speed/{{row}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/speed/{{row}}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    # All cores even where fewer would do: nothing else may run beside it.
    threads: CORES
    resources:
        mem_mb=lambda w: megabytes(w.model, 1.0, 2000),
    params:
        spec=lambda w: argument(speed_spec(w.model, w.row)),
    message:
        "{wildcards.model}: speed of {wildcards.row}"
    shell:
        "python -m quantmill.measure.speed --spec {params.spec:q} --model {input.model[0]:q}"
        " --facts {input.facts:q} --out {output:q}"
        " --log {log:q} --memory {resources.mem_mb} --threads {threads}"


rule measure_served:
    input:
        model=lambda w: from_gguf(w.model, w.row),
        facts=lambda w: facts_of(w.model, w.row),
        server=lambda w: ancient(servers_of(w.model)),
    output:
        f"{RESULTS}/{{model}}/bench/{{row}}/served.json",
    log:
        f"{RESULTS}/{{model}}/logs/served/{{row}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/served/{{row}}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    # As with the speed: nothing else may run beside it.
    threads: CORES
    resources:
        mem_mb=lambda w: megabytes(w.model, 1.0, 4000),
    params:
        spec=lambda w: argument(served_spec(w.model, w.row)),
    message:
        "{wildcards.model}: speed of {wildcards.row} behind a server"
    shell:
        "python -m quantmill.serve.measure --spec {params.spec:q} --model {input.model[0]:q}"
        " --facts {input.facts:q} --server {input.server:q} --out {output:q}"
        " --log {log:q} --memory {resources.mem_mb} --threads {threads}"
