# A plan, executed tensor by tensor through the store.


rule quantize:
    input:
        model=of(inputs.source),
        manifest="<results>/{model}/manifest.tsv",
        plan="<results>/{model}/plans/{recipe}.tsv",
        report="<results>/{model}/plans/{recipe}.json",
        imatrix=of(inputs.imatrix),
        imatrix_report=of(inputs.imatrix_report),
        moments=of(inputs.moments),
        calibration=of(inputs.calibration),
        cross=of(inputs.cross),
        shards=shards.gguf,
    output:
        gguf="<results>/{model}/gguf/{model}-{recipe}.gguf",
        facts="<results>/{model}/gguf/{model}-{recipe}.json",
    log:
        "<results>/{model}/logs/gguf/{recipe}.log",
    benchmark:
        "<results>/{model}/benchmarks/gguf/{recipe}.tsv"
    wildcard_constraints:
        recipe=pattern(project.recipes - project.split),
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.cores
    resources:
        mem_mb=resources.quantize_memory,
        runtime=resources.runtime,
        disk_mb=resources.disk,
    params:
        spec=spec_of(specs.quantized),
    message:
        "{wildcards.model}: quantizing {wildcards.recipe}"
    shell:
        stage(
            "quantize.write",
            "--model {input.model[0]:q} --manifest {input.manifest:q} --plan {input.plan:q}"
            " --report {input.report:q} --imatrix {input.imatrix:q} --moments {input.moments:q}"
            " --calibration {input.calibration:q} --cross {input.cross:q} --gguf {output.gguf:q}"
            " --facts {output.facts:q}",
        )


# In several files, below a folder: how many there are its plan knows, and Snakemake need not.
use rule quantize as quantize_split with:
    output:
        gguf=directory("<results>/{model}/gguf/{model}-{recipe}"),
        facts="<results>/{model}/gguf/{model}-{recipe}.json",
    wildcard_constraints:
        recipe=pattern(project.split),


# A file is done once it is checked. What is wrong with it is in its report: the card names it, and the
# run ends in an error when all else is made.
rule check_file:
    input:
        model=of(inputs.gguf_of),
        facts=of(inputs.facts_of),
    output:
        "<results>/{model}/checks/{recipe}.json",
    log:
        "<results>/{model}/logs/checks/{recipe}.log",
    benchmark:
        "<results>/{model}/benchmarks/checks/{recipe}.tsv"
    priority: 5
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        gpu=resources.gpus,
        mem_mb=resources.memory(1.0, 2000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.checked),
    message:
        "{wildcards.model}: checking {wildcards.recipe}"
    shell:
        stage(
            "check.file",
            "--model {input.model[0]:q} --facts {input.facts:q} --out {output:q}",
        )


# The same types rounded to nearest, with which the card compares: there until its divergence is measured.
use rule quantize as quantize_nearest with:
    input:
        model=of(inputs.source),
        manifest="<results>/{model}/manifest.tsv",
        plan="<results>/{model}/plans/{recipe}.tsv",
        report="<results>/{model}/plans/{recipe}.json",
        imatrix=of(inputs.imatrix),
        imatrix_report=of(inputs.imatrix_report),
        moments=[],
        calibration=[],
        cross=[],
    output:
        gguf=temp("<results>/{model}/nearest/gguf/{model}-{recipe}.gguf"),
        facts="<results>/{model}/nearest/gguf/{model}-{recipe}.json",
    log:
        "<results>/{model}/logs/nearest/{recipe}.log",
    benchmark:
        "<results>/{model}/benchmarks/nearest/{recipe}.tsv"
    wildcard_constraints:
        recipe=pattern(project.with_nearest),
    resources:
        mem_mb=resources.memory(0.05, 1500),
        runtime=resources.runtime,
        disk_mb=resources.disk,
    params:
        spec=spec_of(specs.nearest),
    message:
        "{wildcards.model}: quantizing {wildcards.recipe}, rounded to nearest"


# The same types rounded by gptq, for a recipe of gptaq: what its weights do to the inputs of others in their
# layer is measured, and then made up for. The file is there until that is measured.
use rule quantize as quantize_gptq with:
    input:
        model=of(inputs.source),
        manifest="<results>/{model}/manifest.tsv",
        plan="<results>/{model}/plans/{recipe}.tsv",
        report="<results>/{model}/plans/{recipe}.json",
        imatrix=of(inputs.imatrix),
        imatrix_report=of(inputs.imatrix_report),
        moments=of(inputs.moments),
        calibration=of(inputs.calibration),
        cross=[],
    output:
        gguf=temp("<results>/{model}/cross/gguf/{model}-{recipe}.gguf"),
        facts="<results>/{model}/cross/gguf/{model}-{recipe}.json",
    log:
        "<results>/{model}/logs/cross/gguf/{recipe}.log",
    benchmark:
        "<results>/{model}/benchmarks/cross/gguf/{recipe}.tsv"
    wildcard_constraints:
        recipe=pattern(project.with_cross),
    params:
        spec=spec_of(specs.gptq),
    message:
        "{wildcards.model}: quantizing {wildcards.recipe}, rounded by gptq"


rule measure_cross:
    input:
        model=of(inputs.source),
        quantized=of(inputs.cross_gguf),
        facts=of(inputs.cross_facts),
        moments=of(inputs.moments),
        calibration=of(inputs.calibration),
    output:
        "<results>/{model}/cross/{recipe}.json",
    log:
        "<results>/{model}/logs/cross/{recipe}.log",
    benchmark:
        "<results>/{model}/benchmarks/cross/{recipe}.tsv"
    wildcard_constraints:
        recipe=pattern(project.with_cross),
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        gpu=resources.gpus,
        mem_mb=resources.memory(1.6, 6000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.cross),
    message:
        "{wildcards.model}: cross moments of {wildcards.recipe}"
    shell:
        stage(
            "measure.cross",
            "--model {input.model[0]:q} --quantized {input.quantized:q} --facts {input.facts:q}"
            " --moments {input.moments:q} --corpus {input.calibration:q} --report {output:q}",
        )
