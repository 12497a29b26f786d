# A recipe is rendered, then resolved to a plan: which type each tensor gets, and
# why. Both need the source's header alone, and come first: a wrong recipe is
# refused before hours of work.


rule render_recipe:
    input:
        model=lambda w: from_source(w.model),
        template=lambda w: ancient(template_of(w.model, w.recipe)),
        file=lambda w: ancient(imported_by(w.model, w.recipe)),
        scores=lambda w: ancient(scores_of(w.model, w.recipe)),
        imatrix=lambda w: ancient(ranks_by("imatrix", w.model, w.recipe, imatrix_of(w.model))),
        imatrix_report=lambda w: ranks_by("imatrix", w.model, w.recipe, imatrix_report_of(w.model)),
        sensitivity=lambda w: ancient(
            ranks_by("sensitivity", w.model, w.recipe, sensitivities_of(w.model)[:1])
        ),
        sensitivity_report=lambda w: ranks_by("sensitivity", w.model, w.recipe, sensitivities_of(w.model)[1:]),
    output:
        f"{RESULTS}/{{model}}/recipes/{{recipe}}.yaml",
    log:
        f"{RESULTS}/{{model}}/logs/recipes/{{recipe}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/recipes/{{recipe}}.tsv"
    wildcard_constraints:
        recipe=names(RECIPES - FITTED),
    priority: 10
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=500,
    params:
        spec=lambda w: argument(render_spec(w.model, w.recipe)),
    message:
        "{wildcards.model}: recipe {wildcards.recipe}"
    shell:
        "python -m quantmill.recipe.render --spec {params.spec:q} --model {input.model[0]:q}"
        " --template {input.template:q} --file {input.file:q} --imatrix {input.imatrix:q}"
        " --scores {input.scores:q} --sensitivity {input.sensitivity:q}"
        " --out {output:q} --log {log:q} --memory {resources.mem_mb}"


rule plan_types:
    input:
        model=lambda w: from_source(w.model),
        recipe=f"{RESULTS}/{{model}}/recipes/{{recipe}}.yaml",
        allocation=lambda w: allocation_of(w.model, w.recipe),
    output:
        plan=f"{RESULTS}/{{model}}/plans/{{recipe}}.tsv",
        report=f"{RESULTS}/{{model}}/plans/{{recipe}}.json",
    log:
        f"{RESULTS}/{{model}}/logs/plans/{{recipe}}.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/plans/{{recipe}}.tsv"
    priority: 10
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=lambda w: argument(plan_spec(w.model, w.recipe)),
    message:
        "{wildcards.model}: plan of {wildcards.recipe}"
    shell:
        "python -m quantmill.recipe.plan --spec {params.spec:q} --model {input.model[0]:q}"
        " --recipe {input.recipe:q} --allocation {input.allocation:q}"
        " --plan {output.plan:q} --report {output.report:q} --log {log:q} --memory {resources.mem_mb}"


# What a context takes beside each file: of its own, so that other contexts make no plan stale.
rule tabulate_memory:
    input:
        model=lambda w: from_source(w.model),
        plans=lambda w: [of(w.model, f"plans/{recipe}.json") for recipe in cfg.recipes_of(w.model)],
    output:
        f"{RESULTS}/{{model}}/memory.json",
    log:
        f"{RESULTS}/{{model}}/logs/memory.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/memory.tsv"
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=500,
    params:
        spec=lambda w: argument(memory_spec(w.model)),
    message:
        "{wildcards.model}: memory tables"
    shell:
        "python -m quantmill.model.memory --spec {params.spec:q} --model {input.model[0]:q}"
        " --plans {input.plans:q} --out {output:q} --log {log:q} --memory {resources.mem_mb}"
