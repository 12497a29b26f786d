# Text to token chunks, with the model's own vocabulary.


rule build_corpus:
    input:
        model=lambda w: from_source(w.model),
        sources=lambda w: ancient(corpus_sources_of(w.corpus)),
        disjoint_from=lambda w: corpora_of(w.model, disjoint_from(w.model, w.corpus)),
        reports=lambda w: reports_of(w.model, disjoint_from(w.model, w.corpus)),
    output:
        corpus=f"{RESULTS}/{{model}}/corpus/{{corpus}}.parquet",
        report=f"{RESULTS}/{{model}}/corpus/{{corpus}}.json",
    log:
        f"{RESULTS}/{{model}}/logs/corpus/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/corpus/{{corpus}}.tsv"
    # All of them before anything is measured on one: two that share rows are refused.
    priority: 20
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=2000,
    params:
        spec=lambda w: argument(corpus_spec(w.model, w.corpus)),
    message:
        "{wildcards.model}: corpus {wildcards.corpus}"
    shell:
        "python -m quantmill.corpus.build --spec {params.spec:q} --model {input.model[0]:q}"
        " --corpus {output.corpus:q} --report {output.report:q}"
        " --log {log:q} --memory {resources.mem_mb}"
        " --sources {input.sources:q} --disjoint-from {input.disjoint_from:q}"
