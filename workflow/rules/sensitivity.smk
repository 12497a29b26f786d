# What each tensor is worth: its error at every type, and the KL divergence that this costs the model.


rule measure_sensitivity:
    input:
        model=lambda w: from_source(w.model),
        manifest=f"{RESULTS}/{{model}}/manifest.tsv",
        imatrix=lambda w: ancient(imatrix_of(w.model)),
        imatrix_report=lambda w: imatrix_report_of(w.model),
        corpus=lambda w: corpora_of(w.model, [probes_of(w.model).corpus]),
        corpus_report=lambda w: reports_of(w.model, [probes_of(w.model).corpus]),
    output:
        table=f"{RESULTS}/{{model}}/sensitivity.tsv",
        report=f"{RESULTS}/{{model}}/sensitivity.json",
    log:
        f"{RESULTS}/{{model}}/logs/sensitivity.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/sensitivity.tsv"
    wildcard_constraints:
        model=names(set(cfg.models) - IMPORTED),
    conda:
        "../../envs/quantmill.yaml"
    # All cores: the probing budget is a time.
    threads: CORES
    resources:
        mem_mb=lambda w: megabytes(w.model, 4.0, 4000),
    params:
        spec=lambda w: argument(sensitivity_spec(w.model)),
    message:
        "{wildcards.model}: sensitivity"
    shell:
        "python -m quantmill.sensitivity.measure --spec {params.spec:q} --model {input.model[0]:q}"
        " --manifest {input.manifest:q} --imatrix {input.imatrix:q} --corpus {input.corpus:q}"
        " --out {output.table:q} --report {output.report:q}"
        " --log {log:q} --memory {resources.mem_mb} --threads {threads}"
        ' --store "$QUANTMILL_STORE" --store-max "$QUANTMILL_STORE_MAX"'
