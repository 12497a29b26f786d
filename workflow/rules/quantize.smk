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
    threads: flow.cores
    resources:
        mem_mb=flow.quantize_memory,
    params:
        spec=spec_of(specs.quantized),
    message:
        "{wildcards.model}: quantizing {wildcards.recipe}"
    shell:
        stage(
            "quantize.write",
            "--model {input.model[0]:q} --manifest {input.manifest:q} --plan {input.plan:q}"
            " --report {input.report:q} --imatrix {input.imatrix:q} --moments {input.moments:q}"
            " --calibration {input.calibration:q} --gguf {output.gguf:q} --facts {output.facts:q}",
        )


# In several files, below a folder: how many there are its plan knows, and Snakemake need not.
use rule quantize as quantize_split with:
    output:
        gguf=directory("<results>/{model}/gguf/{model}-{recipe}"),
        facts="<results>/{model}/gguf/{model}-{recipe}.json",
    wildcard_constraints:
        recipe=pattern(project.split),


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
        mem_mb=4000,
    params:
        spec=spec_of(specs.nearest),
    message:
        "{wildcards.model}: quantizing {wildcards.recipe}, rounded to nearest"
