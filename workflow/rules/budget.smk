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
        spec=lambda w: import_spec(w.model),
    message:
        "{wildcards.model}: imported sensitivity"
    shell:
        "python -m quantmill.budget.imported --spec {params.spec:q} --model {input.model[0]:q}"
        " --results {input.results:q} --curve {input.curve:q}"
        " --out {output.table:q} --report {output.report:q} --log {log:q}"


rule allocate_recipe:
    input:
        model=lambda w: from_source(w.model),
        damages=ancient(f"{RESULTS}/{{model}}/sensitivity.tsv"),
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
        spec=lambda w: allocate_spec(w.model, w.recipe),
    message:
        "{wildcards.model}: recipe {wildcards.recipe}, allocated"
    shell:
        "python -m quantmill.budget.allocate --spec {params.spec:q} --model {input.model[0]:q}"
        " --damages {input.damages:q} --out {output.recipe:q} --report {output.report:q} --log {log:q}"
