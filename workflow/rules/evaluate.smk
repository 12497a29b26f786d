# What a file can do: code that is run, tasks of lm-eval; the row `source` is the source itself.


rule evaluate_code:
    input:
        model=lambda w: from_gguf(w.model, w.row),
        facts=lambda w: facts_of(w.model, w.row),
        problems=lambda w: ancient(str(evaluated_by_code(w.model).file())),
    output:
        report=f"{RESULTS}/{{model}}/bench/{{row}}/humaneval.json",
        samples=f"{RESULTS}/{{model}}/bench/{{row}}/humaneval.jsonl",
    log:
        f"{RESULTS}/{{model}}/logs/humaneval/{{row}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/humaneval/{{row}}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    threads: CORES
    resources:
        mem_mb=lambda w: megabytes(w.model, 1.0, 4000),
    params:
        spec=lambda w: argument(humaneval_spec(w.model, w.row)),
    message:
        "{wildcards.model}: HumanEval of {wildcards.row}"
    shell:
        "python -m quantmill.evaluate.humaneval --spec {params.spec:q} --model {input.model[0]:q}"
        " --facts {input.facts:q} --problems {input.problems:q} --out {output.report:q}"
        " --samples {output.samples:q} --log {log:q} --memory {resources.mem_mb} --threads {threads}"
        ' --store "$QUANTMILL_STORE" --store-max "$QUANTMILL_STORE_MAX"'


# lm-eval is an extra (`make evals`), which no other rule needs.
rule evaluate_tasks:
    input:
        model=lambda w: from_gguf(w.model, w.row),
        facts=lambda w: facts_of(w.model, w.row),
        files=lambda w: ancient(list(files_of_tasks(w.model).values())),
    output:
        f"{RESULTS}/{{model}}/bench/{{row}}/tasks.json",
    log:
        f"{RESULTS}/{{model}}/logs/tasks/{{row}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/tasks/{{row}}.tsv"
    conda:
        "../../envs/evals.yaml"
    threads: CORES
    resources:
        mem_mb=lambda w: megabytes(w.model, 1.0, 4000),
    params:
        spec=lambda w: argument(tasks_spec(w.model, w.row)),
    message:
        "{wildcards.model}: tasks of {wildcards.row}"
    shell:
        "python -m quantmill.evaluate.tasks --spec {params.spec:q} --model {input.model[0]:q}"
        " --facts {input.facts:q} --out {output:q}"
        " --log {log:q} --memory {resources.mem_mb} --threads {threads}"
        ' --store "$QUANTMILL_STORE" --store-max "$QUANTMILL_STORE_MAX"'
