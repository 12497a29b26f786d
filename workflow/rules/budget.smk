# Size-targeted recipes: published sensitivities, the allocation, and the plan of the recipe that it chose.
from quantmill.flow import floors


rule import_sensitivity:
    input:
        model=of(inputs.source),
        results=of(inputs.published_sensitivity),
        curve=of(inputs.published_curve),
    output:
        table="<results>/{model}/sensitivity.tsv",
        report="<results>/{model}/sensitivity.json",
    log:
        "<results>/{model}/logs/sensitivity.log",
    benchmark:
        "<results>/{model}/benchmarks/sensitivity.tsv"
    wildcard_constraints:
        model=pattern(project.with_imported_sensitivity),
    priority: 10
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=spec_of(specs.sensitivity),
    message:
        "{wildcards.model}: imported sensitivity"
    shell:
        stage(
            "sensitivity.imported",
            "--model {input.model[0]:q} --results {input.results:q} --curve {input.curve:q}"
            " --out {output.table:q} --report {output.report:q}",
        )


# As with the speed of files: nothing else may run beside it.
rule measure_types:
    input:
        model=of(inputs.source),
    output:
        "<results>/{model}/speeds.json",
    log:
        "<results>/{model}/logs/speeds.log",
    benchmark:
        "<results>/{model}/benchmarks/speeds.tsv"
    wildcard_constraints:
        model=pattern(floors.models(project)),
    priority: 30
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.cores
    resources:
        mem_mb=resources.memory(1.0, 3000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.speeds),
    message:
        "{wildcards.model}: speed of the types on this machine"
    shell:
        stage(
            "budget.speed",
            "--model {input.model[0]:q} --out {output:q}",
        )


# Before anything is measured for it: whether a size can be met follows from the header.
rule check_budget:
    input:
        model=of(inputs.source),
        grids=of(inputs.grids),
        speeds=of(inputs.speeds),
    output:
        "<results>/{model}/reach/{recipe}.json",
    log:
        "<results>/{model}/logs/reach/{recipe}.log",
    benchmark:
        "<results>/{model}/benchmarks/reach/{recipe}.tsv"
    wildcard_constraints:
        model=pattern(set(project.models) - project.with_imported_sensitivity),
        recipe=pattern(project.size_targeted),
    priority: 20
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=spec_of(specs.feasibility),
    message:
        "{wildcards.model}: the smallest and the largest size of {wildcards.recipe}"
    shell:
        stage(
            "budget.feasibility",
            "--model {input.model[0]:q} --grids {input.grids:q} --speeds {input.speeds:q} --out {output:q}",
        )


rule allocate_recipe:
    input:
        model=of(inputs.source),
        feasibility=of(inputs.feasibility),
        grids=of(inputs.grids),
        speeds=of(inputs.speeds),
        sensitivity=ancient("<results>/{model}/sensitivity.tsv"),
        report="<results>/{model}/sensitivity.json",
    output:
        recipe="<results>/{model}/recipes/{recipe}.yaml",
        report="<results>/{model}/recipes/{recipe}.json",
    log:
        "<results>/{model}/logs/recipes/{recipe}.log",
    benchmark:
        "<results>/{model}/benchmarks/recipes/{recipe}.tsv"
    wildcard_constraints:
        recipe=pattern(project.size_targeted),
    priority: 10
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=spec_of(specs.allocated),
    message:
        "{wildcards.model}: recipe {wildcards.recipe}, allocated"
    shell:
        stage(
            "budget.allocate",
            "--model {input.model[0]:q} --sensitivity {input.sensitivity:q} --grids {input.grids:q}"
            " --speeds {input.speeds:q} --out {output.recipe:q}"
            " --report {output.report:q}",
        )


rule plan_allocated:
    input:
        model=of(inputs.source),
        recipe="<results>/{model}/recipes/{recipe}.yaml",
        allocation="<results>/{model}/recipes/{recipe}.json",
        grids=of(inputs.grids),
    output:
        plan="<results>/{model}/plans/{recipe}.tsv",
        report="<results>/{model}/plans/{recipe}.json",
    log:
        "<results>/{model}/logs/plans/{recipe}.log",
    benchmark:
        "<results>/{model}/benchmarks/plans/{recipe}.tsv"
    wildcard_constraints:
        recipe=pattern(project.size_targeted),
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
            "--model {input.model[0]:q} --recipe {input.recipe:q} --allocation {input.allocation:q}"
            " --grids {input.grids:q} --plan {output.plan:q} --report {output.report:q}",
        )
