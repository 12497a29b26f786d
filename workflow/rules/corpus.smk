# Text to token chunks, with the model's own vocabulary.


rule build_corpus:
    input:
        model=of(inputs.source),
        sources=of(inputs.texts),
        disjoint_from=of(inputs.corpora_before),
        reports=of(inputs.reports_before),
    output:
        corpus="<results>/{model}/corpus/{corpus}.parquet",
        report="<results>/{model}/corpus/{corpus}.json",
    log:
        "<results>/{model}/logs/corpus/{corpus}.log",
    benchmark:
        "<results>/{model}/benchmarks/corpus/{corpus}.tsv"
    # All of them before anything is measured on one: two that share rows are refused.
    priority: 20
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=2000,
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.corpus),
    message:
        "{wildcards.model}: corpus {wildcards.corpus}"
    shell:
        stage(
            "corpus.build",
            "--model {input.model[0]:q} --corpus {output.corpus:q} --report {output.report:q}"
            " --sources {input.sources:q} --disjoint-from {input.disjoint_from:q}",
        )
