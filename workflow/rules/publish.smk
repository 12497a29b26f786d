# A repository takes files up to a size; how those above it are called there is on the card.
rule name_parts:
    input:
        ggufs=of(inputs.ggufs),
        facts=of(inputs.gguf_reports),
    output:
        "<results>/{model}/parts.json",
    log:
        "<results>/{model}/logs/parts.log",
    benchmark:
        "<results>/{model}/benchmarks/parts.tsv"
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=spec_of(card_specs.parts),
        results=subpath(output[0], parent=True),
    message:
        "{wildcards.model}: names of the files in the repository"
    shell:
        stage(
            "publish.split",
            "--out {output:q} --results {params.results:q}",
        )


# What is made, for those who download it: shown; and uploaded with --config confirm=yes. It has no
# output, so that it is done whenever it is asked for, and never as a part of anything else.


rule publish:
    input:
        files(targets.published),
    log:
        "<results>/logs/publish.log",
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    params:
        spec=spec_of(card_specs.publish),
        results=str(project.results),
    message:
        "publishing"
    shell:
        stage(
            "publish.upload",
            "--results {params.results:q}",
        )
