# A Hugging Face checkpoint, its MLP weights as NVFP4.


# Of those checkpoints alone whose activations are to become NVFP4 too.
rule calibrate_activations:
    input:
        model=of(inputs.source),
        corpus=of(inputs.calibration_corpus),
        report=of(inputs.calibration_report),
    output:
        "<results>/{model}/activations.json",
    log:
        "<results>/{model}/logs/activations.log",
    benchmark:
        "<results>/{model}/benchmarks/activations.tsv"
    wildcard_constraints:
        model=pattern(project.converted & project.exports.keys()),
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        gpu=resources.gpus,
        mem_mb=resources.memory(1.2, 2000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.activations),
    message:
        "{wildcards.model}: the largest inputs of the MLP weights"
    shell:
        stage(
            "checkpoint.calibrate",
            "--model {input.model[0]:q} --corpus {input.corpus:q} --activations {output:q}",
        )


rule export_checkpoint:
    input:
        config=of(inputs.checkpoint_config),
        files=of(inputs.checkpoint_files),
        activations=of(inputs.activations),
    output:
        # The weights go by the names of the source's: this is there whatever they are.
        config="<results>/{model}/checkpoint/{model}-{recipe}/config.json",
        report="<results>/{model}/checkpoint/{model}-{recipe}.json",
    log:
        "<results>/{model}/logs/checkpoint/{recipe}.log",
    benchmark:
        "<results>/{model}/benchmarks/checkpoint/{recipe}.tsv"
    wildcard_constraints:
        model=pattern(project.exports),
        recipe=pattern(project.exported),
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.cores
    resources:
        mem_mb=4000,
        runtime=resources.runtime,
        disk_mb=resources.disk,
    params:
        spec=spec_of(card_specs.export),
        folder=subpath(output.config, parent=True),
    message:
        "{wildcards.model}: NVFP4 checkpoint {wildcards.recipe}"
    shell:
        stage(
            "checkpoint.export",
            '--source "$(dirname {input.config:q})" --activations {input.activations:q}'
            " --out {params.folder:q} --report {output.report:q}",
        )


# In the checkpoint's folder, which an export makes anew: so it comes after each.
rule write_checkpoint_card:
    input:
        "<results>/{model}/checkpoint/{model}-{recipe}.json",
    output:
        "<results>/{model}/checkpoint/{model}-{recipe}/README.md",
    log:
        "<results>/{model}/logs/checkpoint/{recipe}-card.log",
    benchmark:
        "<results>/{model}/benchmarks/checkpoint/{recipe}-card.tsv"
    wildcard_constraints:
        model=pattern(project.exports),
        recipe=pattern(project.exported),
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=500,
    params:
        spec=spec_of(card_specs.checkpoint_card),
    message:
        "{wildcards.model}: card of the checkpoint {wildcards.recipe}"
    shell:
        stage(
            "card.checkpoint",
            "--report {input:q} --card {output:q}",
        )
