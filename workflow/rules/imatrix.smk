# The importance matrix of a model: from its calibration corpus, or as somebody published it.


rule measure_imatrix:
    input:
        model=lambda w: from_source(w.model),
        corpus=lambda w: corpora_of(w.model, [calibration_of(w.model).corpus]),
        report=lambda w: reports_of(w.model, [calibration_of(w.model).corpus]),
    output:
        gguf=f"{RESULTS}/{{model}}/imatrix.gguf",
        dat=f"{RESULTS}/{{model}}/imatrix.dat",
        report=f"{RESULTS}/{{model}}/imatrix.json",
    log:
        f"{RESULTS}/{{model}}/logs/imatrix.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/imatrix.tsv"
    wildcard_constraints:
        model=names(set(cfg.models) - GIVEN_IMATRIX),
    conda:
        "../../envs/quantmill.yaml"
    threads: CORES
    resources:
        mem_mb=lambda w: megabytes(w.model, 1.2, 2000),
    params:
        spec=lambda w: argument(imatrix_spec(w.model)),
    message:
        "{wildcards.model}: importance matrix"
    shell:
        "python -m quantmill.measure.imatrix --spec {params.spec:q} --model {input.model[0]:q}"
        " --corpus {input.corpus:q} --gguf {output.gguf:q} --dat {output.dat:q} --report {output.report:q}"
        " --log {log:q} --memory {resources.mem_mb} --threads {threads}"
        ' --store "$QUANTMILL_STORE" --store-max "$QUANTMILL_STORE_MAX"'


# Before anything is measured with it: one of another model is refused.
rule import_imatrix:
    input:
        model=lambda w: from_source(w.model),
        file=lambda w: ancient(imported_imatrix_of(w.model)),
    output:
        gguf=f"{RESULTS}/{{model}}/imatrix.gguf",
        dat=f"{RESULTS}/{{model}}/imatrix.dat",
        report=f"{RESULTS}/{{model}}/imatrix.json",
    log:
        f"{RESULTS}/{{model}}/logs/imatrix.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/imatrix.tsv"
    wildcard_constraints:
        model=names(GIVEN_IMATRIX),
    priority: 20
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=lambda w: 1000 + 4 * os.path.getsize(imported_imatrix_of(w.model)) // 10**6,
    params:
        spec=lambda w: argument(imatrix_spec(w.model)),
    message:
        "{wildcards.model}: imported importance matrix"
    shell:
        "python -m quantmill.imatrix.imported --spec {params.spec:q} --model {input.model[0]:q}"
        " --file {input.file:q} --gguf {output.gguf:q} --dat {output.dat:q} --report {output.report:q}"
        " --log {log:q} --memory {resources.mem_mb}"
