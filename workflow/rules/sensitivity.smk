# What each tensor is worth: its error at every type, and the KL divergence that this costs the model.


rule measure_sensitivity:
    input:
        model=of(inputs.source),
        manifest="<results>/{model}/manifest.tsv",
        imatrix=of(inputs.imatrix),
        imatrix_report=of(inputs.imatrix_report),
        corpus=of(inputs.tuning_corpus),
        corpus_report=of(inputs.tuning_report),
        moments=of(inputs.probe_moments),
        calibration=of(inputs.probe_calibration),
        shards=shards.sensitivity,
    output:
        table="<results>/{model}/sensitivity.tsv",
        report="<results>/{model}/sensitivity.json",
    log:
        "<results>/{model}/logs/sensitivity.log",
    benchmark:
        "<results>/{model}/benchmarks/sensitivity.tsv"
    wildcard_constraints:
        model=pattern(set(project.models) - project.with_imported_sensitivity),
    conda:
        "../../envs/quantmill.yaml"
    # All cores: the probing budget is a time.
    threads: resources.cores
    resources:
        mem_mb=resources.memory(4.0, 4000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.sensitivity),
    message:
        "{wildcards.model}: sensitivity"
    shell:
        stage(
            "sensitivity.measure",
            "--model {input.model[0]:q} --manifest {input.manifest:q} --imatrix {input.imatrix:q}"
            " --corpus {input.corpus:q} --moments {input.moments:q} --calibration {input.calibration:q}"
            " --out {output.table:q} --report {output.report:q}",
        )
