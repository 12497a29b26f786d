# What is measured of each file; the row `source` is the source itself.


rule measure_perplexity:
    input:
        model=lambda w: from_gguf(w.model, w.row),
        facts=lambda w: facts_of(w.model, w.row),
        corpus=lambda w: corpora_of(w.model, [held_out_of(w.model).corpus]),
        report=lambda w: reports_of(w.model, [held_out_of(w.model).corpus]),
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
        spec=lambda w: perplexity_spec(w.model, w.row),
    message:
        "{wildcards.model}: perplexity of {wildcards.row}"
    shell:
        "python -m quantmill.measure.perplexity --spec {params.spec:q} --model {input.model[0]:q}"
        " --facts {input.facts:q} --corpus {input.corpus:q} --out {output:q}"
        " --log {log:q} --threads {threads}"
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
        spec=lambda w: speed_spec(w.model, w.row),
    message:
        "{wildcards.model}: speed of {wildcards.row}"
    shell:
        "python -m quantmill.measure.speed --spec {params.spec:q} --model {input.model[0]:q}"
        " --facts {input.facts:q} --out {output:q} --log {log:q} --threads {threads}"
