# A recipe is rendered and resolved to a plan: which type each tensor gets, and why. That needs the
# source's header alone, and comes first: a wrong recipe is refused before hours of work.


rule plan_types:
    input:
        model=of(inputs.source),
        template=of(inputs.template),
        file=of(inputs.published_recipe),
        scores=of(inputs.scores),
        imatrix=of(inputs.ranking_imatrix),
        imatrix_report=of(inputs.ranking_imatrix_report),
        sensitivity=of(inputs.ranking_sensitivity),
        sensitivity_report=of(inputs.ranking_sensitivity_report),
        grids=of(inputs.grids),
    output:
        recipe="<results>/{model}/recipes/{recipe}.yaml",
        plan="<results>/{model}/plans/{recipe}.tsv",
        report="<results>/{model}/plans/{recipe}.json",
    log:
        "<results>/{model}/logs/plans/{recipe}.log",
    benchmark:
        "<results>/{model}/benchmarks/plans/{recipe}.tsv"
    wildcard_constraints:
        recipe=pattern(project.recipes - project.size_targeted),
    priority: 10
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=spec_of(specs.plan),
    message:
        "{wildcards.model}: plan of {wildcards.recipe}"
    shell:
        stage(
            "recipe.plan",
            "--model {input.model[0]:q} --template {input.template:q} --file {input.file:q}"
            " --imatrix {input.imatrix:q} --scores {input.scores:q}"
            " --sensitivity {input.sensitivity:q} --grids {input.grids:q}"
            " --recipe {output.recipe:q} --plan {output.plan:q} --report {output.report:q}",
        )


# What a context takes beside each file: of its own, so that other contexts make no plan stale.
rule tabulate_memory:
    input:
        model=of(inputs.source),
        plans=of(inputs.plan_reports),
        projectors=of(inputs.projector_plans),
    output:
        "<results>/{model}/memory.json",
    log:
        "<results>/{model}/logs/memory.log",
    benchmark:
        "<results>/{model}/benchmarks/memory.tsv"
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=500,
    params:
        spec=spec_of(specs.memory),
    message:
        "{wildcards.model}: memory tables"
    shell:
        stage(
            "model.memory",
            "--model {input.model[0]:q} --plans {input.plans:q} --projectors {input.projectors:q}"
            " --out {output:q}",
        )
