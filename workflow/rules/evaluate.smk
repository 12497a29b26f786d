# What a file can do: code that is run, tasks of lm-eval; the row `source` is the source itself.


rule evaluate_code:
    input:
        model=of(inputs.gguf),
        facts=of(inputs.facts),
        problems=of(inputs.problems),
        shards=shards.humaneval,
    output:
        report="<results>/{model}/bench/{row}/humaneval.json",
        samples="<results>/{model}/bench/{row}/humaneval.jsonl",
    log:
        "<results>/{model}/logs/humaneval/{row}.log",
    benchmark:
        "<results>/{model}/benchmarks/humaneval/{row}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        gpu=resources.gpus,
        mem_mb=resources.memory(1.0, 4000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.humaneval),
    message:
        "{wildcards.model}: HumanEval of {wildcards.row}"
    shell:
        stage(
            "evaluate.humaneval",
            "--model {input.model[0]:q} --facts {input.facts:q} --problems {input.problems:q}"
            " --out {output.report:q} --samples {output.samples:q}",
        )


# lm-eval is an extra (`make evals`), which no other rule needs.
rule evaluate_tasks:
    input:
        model=of(inputs.gguf),
        facts=of(inputs.facts),
        files=of(inputs.tasks),
    output:
        "<results>/{model}/bench/{row}/tasks.json",
    log:
        "<results>/{model}/logs/tasks/{row}.log",
    benchmark:
        "<results>/{model}/benchmarks/tasks/{row}.tsv"
    conda:
        "../../envs/evals.yaml"
    threads: resources.evaluation_cores
    resources:
        gpu=resources.gpus,
        mem_mb=resources.memory(1.0, 4000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.tasks),
    message:
        "{wildcards.model}: tasks of {wildcards.row}"
    shell:
        stage(
            "evaluate.tasks",
            "--model {input.model[0]:q} --facts {input.facts:q} --out {output:q}",
        )
