# The source model: fetched where it lies elsewhere, or converted, then listed.


rule fetch_source:
    output:
        gguf="<results>/{model}/source/{file}",
        facts="<results>/{model}/source/{file}.json",
    log:
        "<results>/{model}/logs/fetch/{file}.log",
    benchmark:
        "<results>/{model}/benchmarks/fetch/{file}.tsv"
    wildcard_constraints:
        model=pattern(project.fetched),
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    params:
        spec=spec_of(specs.fetch),
    message:
        "{wildcards.model}: fetching {wildcards.file}"
    shell:
        stage(
            "model.fetch",
            "--gguf {output.gguf:q} --facts {output.facts:q}",
        )


rule convert_checkpoint:
    input:
        config=of(inputs.checkpoint_config),
        files=of(inputs.checkpoint_files),
    output:
        gguf="<results>/{model}/source/{model}.gguf",
        facts="<results>/{model}/source/{model}.gguf.json",
    log:
        "<results>/{model}/logs/convert.log",
    benchmark:
        "<results>/{model}/benchmarks/convert.tsv"
    wildcard_constraints:
        model=pattern(project.staying),
    priority: 20
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.cores
    resources:
        mem_mb=8000,
        runtime=resources.runtime,
        disk_mb=resources.disk,
    params:
        spec=spec_of(specs.convert),
    message:
        "{wildcards.model}: converting the checkpoint to GGUF"
    shell:
        stage(
            "checkpoint.convert",
            '--source "$(dirname {input.config:q})" --converter "$QUANTMILL_CONVERTER"'
            " --gguf {output.gguf:q} --facts {output.facts:q}",
        )


use rule convert_checkpoint as convert_checkpoint_for_now with:
    output:
        gguf=temp("<results>/{model}/source/{model}.gguf"),
        facts="<results>/{model}/source/{model}.gguf.json",
    wildcard_constraints:
        model=pattern(project.converted - project.staying),


# First of all, from the header: it takes less than a second, and what it refuses need not be begun.
rule check_source:
    input:
        model=of(inputs.source),
    output:
        "<results>/{model}/check.json",
    log:
        "<results>/{model}/logs/check.log",
    benchmark:
        "<results>/{model}/benchmarks/check.tsv"
    priority: 100
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=spec_of(specs.check),
    message:
        "{wildcards.model}: checking that llama.cpp loads the source"
    shell:
        stage(
            "check.source",
            '--model {input.model[0]:q} --evaluations "$QUANTMILL_EVALUATIONS" --out {output:q}',
        )


rule list_tensors:
    input:
        model=of(inputs.source),
    output:
        manifest="<results>/{model}/manifest.tsv",
        facts="<results>/{model}/model.json",
    log:
        "<results>/{model}/logs/manifest.log",
    benchmark:
        "<results>/{model}/benchmarks/manifest.tsv"
    priority: 50
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.cores
    resources:
        mem_mb=1000,
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.manifest),
    message:
        "{wildcards.model}: listing the source's tensors"
    shell:
        stage(
            "model.manifest",
            "--model {input.model[0]:q} --manifest {output.manifest:q} --facts {output.facts:q}",
        )
