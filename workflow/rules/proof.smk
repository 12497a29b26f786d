# What the files are made from, locked by content; the files made again from it; the lock signed.


# With a statement for each file: how many files there are the plans know, and Snakemake need not.
rule write_lock:
    input:
        of(targets.locked),
    output:
        lock="<results>/{model}/lock.json",
        statements=directory("<results>/{model}/statements"),
    log:
        "<results>/{model}/logs/lock.log",
    benchmark:
        "<results>/{model}/benchmarks/lock.tsv"
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=spec_of(card_specs.lock),
        results=subpath(output.lock, parent=True),
        source=of(project.source_files),
    message:
        "{wildcards.model}: locking what its files are made from"
    shell:
        stage(
            "proof.lock",
            "--results {params.results:q} --source {params.source:q} --out {output.lock:q}"
            " --statements {output.statements:q}",
        )


rule sign_lock:
    input:
        "<results>/{model}/lock.json",
    output:
        "<results>/{model}/lock.json.sig",
    log:
        "<results>/{model}/logs/sign.log",
    benchmark:
        "<results>/{model}/benchmarks/sign.tsv"
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    params:
        spec=spec_of(card_specs.signature),
        key=of(inputs.key),
    message:
        "{wildcards.model}: signing the lock"
    shell:
        stage(
            "proof.sign",
            "--lock {input:q} --key {params.key:q} --out {output:q}",
        )


# The files of all models, made again. It has no output, so that it is done whenever it is asked for; what came
# of it is in each model's verify.json.
rule verify:
    input:
        files(targets.verify),
    log:
        "<results>/logs/verify.log",
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.cores
    resources:
        mem_mb=8000,
    params:
        spec=spec_of(card_specs.verify),
        results=of(inputs.results),
        sources=files(targets.sources),
    message:
        "making the files again from their locks"
    shell:
        stage(
            "proof.verify",
            "--results {params.results:q} --sources {params.sources:q}",
        )


# The same of one model, where its card is to say so (`publish: {verify}`).
use rule verify as verify_files with:
    input:
        of(targets.verified_with),
    output:
        "<results>/{model}/verify.json",
    log:
        "<results>/{model}/logs/verify.log",
    benchmark:
        "<results>/{model}/benchmarks/verify.tsv"
    resources:
        mem_mb=resources.memory(0.3, 8000),
        runtime=resources.runtime,
    params:
        spec=spec_of(card_specs.verified),
        results=subpath(output[0], ancestor=2),
        sources=of(inputs.first),
    message:
        "{wildcards.model}: making its files again from the lock"
