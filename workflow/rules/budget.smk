# Recipes fitted to a budget: what others measured of the tensors, and the allocation. A
# recipe that is allocated is written where a rendered one would be; the plan of both
# is made alike.


rule import_sensitivity:
    input:
        model=lambda w: from_source(w.model),
        results=lambda w: ancient(cfg.sensitivity_of(w.model).results),
        curve=lambda w: ancient(cfg.sensitivity_of(w.model).curve),
    output:
        table=f"{RESULTS}/{{model}}/sensitivity.tsv",
        report=f"{RESULTS}/{{model}}/sensitivity.json",
    log:
        f"{RESULTS}/{{model}}/logs/sensitivity.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/sensitivity.tsv"
    wildcard_constraints:
        model=names(IMPORTED),
    priority: 10
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=lambda w: argument(import_spec(w.model)),
    message:
        "{wildcards.model}: imported sensitivity"
    shell:
        "python -m quantmill.sensitivity.imported --spec {params.spec:q} --model {input.model[0]:q}"
        " --results {input.results:q} --curve {input.curve:q}"
        " --out {output.table:q} --report {output.report:q} --log {log:q} --memory {resources.mem_mb}"


# Before anything is measured for it: what a budget can reach follows from the header.
rule check_budget:
    input:
        model=lambda w: from_source(w.model),
    output:
        f"{RESULTS}/{{model}}/reach/{{recipe}}.json",
    log:
        f"{RESULTS}/{{model}}/logs/reach/{{recipe}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/reach/{{recipe}}.tsv"
    wildcard_constraints:
        model=names(set(cfg.models) - IMPORTED),
        recipe=names(FITTED),
    priority: 20
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=lambda w: argument(reach_spec(w.model, w.recipe)),
    message:
        "{wildcards.model}: what {wildcards.recipe} can reach"
    shell:
        "python -m quantmill.budget.feasibility --spec {params.spec:q} --model {input.model[0]:q}"
        " --out {output:q} --log {log:q} --memory {resources.mem_mb}"


rule allocate_recipe:
    input:
        model=lambda w: from_source(w.model),
        reach=lambda w: reach_of(w.model, w.recipe),
        sensitivity=ancient(f"{RESULTS}/{{model}}/sensitivity.tsv"),
        report=f"{RESULTS}/{{model}}/sensitivity.json",
    output:
        recipe=f"{RESULTS}/{{model}}/recipes/{{recipe}}.yaml",
        report=f"{RESULTS}/{{model}}/recipes/{{recipe}}.json",
    log:
        f"{RESULTS}/{{model}}/logs/recipes/{{recipe}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/recipes/{{recipe}}.tsv"
    wildcard_constraints:
        recipe=names(FITTED),
    priority: 10
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=lambda w: argument(allocate_spec(w.model, w.recipe)),
    message:
        "{wildcards.model}: recipe {wildcards.recipe}, allocated"
    shell:
        "python -m quantmill.budget.allocate --spec {params.spec:q} --model {input.model[0]:q}"
        " --sensitivity {input.sensitivity:q}"
        " --out {output.recipe:q} --report {output.report:q} --log {log:q} --memory {resources.mem_mb}"
