# The importance matrix of a model: from its calibration corpus, or as somebody published it. The second
# moments of its weights' inputs, where any file is rounded by them.


rule measure_imatrix:
    input:
        model=of(inputs.source),
        corpus=of(inputs.calibration_corpus),
        shards=shards.imatrix,
        report=of(inputs.calibration_report),
    output:
        gguf="<results>/{model}/imatrix.gguf",
        dat="<results>/{model}/imatrix.dat",
        report="<results>/{model}/imatrix.json",
    log:
        "<results>/{model}/logs/imatrix.log",
    benchmark:
        "<results>/{model}/benchmarks/imatrix.tsv"
    wildcard_constraints:
        model=pattern(set(project.models) - project.with_imported_imatrix),
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        gpu=resources.gpus,
        mem_mb=resources.memory(1.2, 2000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.imatrix),
    message:
        "{wildcards.model}: importance matrix"
    shell:
        stage(
            "measure.imatrix",
            "--model {input.model[0]:q} --corpus {input.corpus:q} --gguf {output.gguf:q}"
            " --dat {output.dat:q} --report {output.report:q}",
        )


# Before anything is measured with it: one of another model is refused.
rule import_imatrix:
    input:
        model=of(inputs.source),
        file=of(inputs.published_imatrix),
    output:
        gguf="<results>/{model}/imatrix.gguf",
        dat="<results>/{model}/imatrix.dat",
        report="<results>/{model}/imatrix.json",
    log:
        "<results>/{model}/logs/imatrix.log",
    benchmark:
        "<results>/{model}/benchmarks/imatrix.tsv"
    wildcard_constraints:
        model=pattern(project.with_imported_imatrix),
    priority: 20
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=resources.memory(4, 1000, resources.imported),
    params:
        spec=spec_of(specs.imatrix),
    message:
        "{wildcards.model}: imported importance matrix"
    shell:
        stage(
            "imatrix.imported",
            "--model {input.model[0]:q} --file {input.file:q} --gguf {output.gguf:q}"
            " --dat {output.dat:q} --report {output.report:q}",
        )


rule measure_moments:
    input:
        model=of(inputs.source),
        corpus=of(inputs.moments_corpus),
        shards=shards.moments,
        report=of(inputs.moments_report),
    output:
        "<results>/{model}/moments.json",
    log:
        "<results>/{model}/logs/moments.log",
    benchmark:
        "<results>/{model}/benchmarks/moments.tsv"
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        gpu=resources.gpus,
        mem_mb=resources.memory(1.2, 6000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.moments),
    message:
        "{wildcards.model}: second moments"
    shell:
        stage(
            "measure.moments",
            "--model {input.model[0]:q} --corpus {input.corpus:q} --report {output:q}",
        )
