# Shards: jobs that share a long stage where `shards` of the config is above 1. Each fills the store with some of
# the stage's units, and writes nothing else; Snakemake makes the mark that the stage itself waits for.


rule shard_imatrix:
    input:
        model=of(inputs.source),
        corpus=of(inputs.calibration_corpus),
        report=of(inputs.calibration_report),
    output:
        temp(touch("<results>/{model}/shards/imatrix/{shard}")),
    log:
        "<results>/{model}/logs/shards/imatrix/{shard}.log",
    benchmark:
        "<results>/{model}/benchmarks/shards/imatrix/{shard}.tsv"
    wildcard_constraints:
        model=pattern(set(project.models) - project.with_imported_imatrix),
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        gpu=resources.gpus,
        mem_mb=resources.memory(1.2, 2000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.imatrix),
    message:
        "{wildcards.model}: importance matrix, {wildcards.shard}"
    shell:
        stage(
            "measure.imatrix",
            "--model {input.model[0]:q} --corpus {input.corpus:q} --gguf {output:q} --dat {output:q}"
            " --report {output:q} --shard {wildcards.shard}",
        )


rule shard_moments:
    input:
        model=of(inputs.source),
        corpus=of(inputs.moments_corpus),
        report=of(inputs.moments_report),
    output:
        temp(touch("<results>/{model}/shards/moments/{shard}")),
    log:
        "<results>/{model}/logs/shards/moments/{shard}.log",
    benchmark:
        "<results>/{model}/benchmarks/shards/moments/{shard}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        gpu=resources.gpus,
        mem_mb=resources.memory(1.2, 6000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.moments),
    message:
        "{wildcards.model}: second moments, {wildcards.shard}"
    shell:
        stage(
            "measure.moments",
            "--model {input.model[0]:q} --corpus {input.corpus:q} --report {output:q} --shard {wildcards.shard}",
        )


rule shard_sensitivity:
    input:
        model=of(inputs.source),
        manifest="<results>/{model}/manifest.tsv",
        imatrix=of(inputs.imatrix),
        imatrix_report=of(inputs.imatrix_report),
        corpus=of(inputs.tuning_corpus),
        corpus_report=of(inputs.tuning_report),
        moments=of(inputs.probe_moments),
        calibration=of(inputs.probe_calibration),
    output:
        temp(touch("<results>/{model}/shards/sensitivity/{shard}")),
    log:
        "<results>/{model}/logs/shards/sensitivity/{shard}.log",
    benchmark:
        "<results>/{model}/benchmarks/shards/sensitivity/{shard}.tsv"
    wildcard_constraints:
        model=pattern(set(project.models) - project.with_imported_sensitivity),
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.cores
    resources:
        mem_mb=resources.memory(4.0, 4000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.sensitivity),
    message:
        "{wildcards.model}: sensitivity, {wildcards.shard}"
    shell:
        stage(
            "sensitivity.measure",
            "--model {input.model[0]:q} --manifest {input.manifest:q} --imatrix {input.imatrix:q}"
            " --corpus {input.corpus:q} --moments {input.moments:q} --calibration {input.calibration:q}"
            " --out {output:q} --report {output:q} --shard {wildcards.shard}",
        )


rule shard_quantize:
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
    output:
        temp(touch("<results>/{model}/shards/gguf/{recipe}/{shard}")),
    log:
        "<results>/{model}/logs/shards/gguf/{recipe}/{shard}.log",
    benchmark:
        "<results>/{model}/benchmarks/shards/gguf/{recipe}/{shard}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.cores
    resources:
        mem_mb=resources.quantize_memory,
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.quantized),
    message:
        "{wildcards.model}: quantizing {wildcards.recipe}, {wildcards.shard}"
    shell:
        stage(
            "quantize.write",
            "--model {input.model[0]:q} --manifest {input.manifest:q} --plan {input.plan:q}"
            " --report {input.report:q} --imatrix {input.imatrix:q} --moments {input.moments:q}"
            " --calibration {input.calibration:q} --cross {input.cross:q} --gguf {output:q} --facts {output:q}"
            " --shard {wildcards.shard}",
        )


rule shard_divergence:
    input:
        model=of(inputs.gguf),
        facts=of(inputs.facts),
        reference=of(inputs.source),
        reference_facts="<results>/{model}/model.json",
        corpus=of(inputs.kld_corpus),
        report=of(inputs.kld_report),
        noise_floor=of(inputs.noise_floor),
    output:
        temp(touch("<results>/{model}/shards/kld/{row}/{shard}")),
    log:
        "<results>/{model}/logs/shards/kld/{row}/{shard}.log",
    benchmark:
        "<results>/{model}/benchmarks/shards/kld/{row}/{shard}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        gpu=resources.gpus,
        mem_mb=resources.memory(1.0, 3000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.kld),
    message:
        "{wildcards.model}: KL divergence of {wildcards.row}, {wildcards.shard}"
    shell:
        stage(
            "measure.divergence",
            "--model {input.model[0]:q} --facts {input.facts:q} --reference {input.reference[0]:q}"
            " --reference-facts {input.reference_facts:q} --corpus {input.corpus:q} --out {output:q}"
            " --shard {wildcards.shard}",
        )


rule shard_perplexity:
    input:
        model=of(inputs.gguf),
        facts=of(inputs.facts),
        corpus=of(inputs.perplexity_corpus),
        report=of(inputs.perplexity_report),
    output:
        temp(touch("<results>/{model}/shards/perplexity/{row}/{shard}")),
    log:
        "<results>/{model}/logs/shards/perplexity/{row}/{shard}.log",
    benchmark:
        "<results>/{model}/benchmarks/shards/perplexity/{row}/{shard}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        gpu=resources.gpus,
        mem_mb=resources.memory(1.0, 2000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.perplexity),
    message:
        "{wildcards.model}: perplexity of {wildcards.row}, {wildcards.shard}"
    shell:
        stage(
            "measure.perplexity",
            "--model {input.model[0]:q} --facts {input.facts:q} --corpus {input.corpus:q} --out {output:q}"
            " --shard {wildcards.shard}",
        )


rule shard_embeddings:
    input:
        model=of(inputs.gguf),
        facts=of(inputs.facts),
        reference=of(inputs.source),
        reference_facts="<results>/{model}/model.json",
        corpus=of(inputs.embeddings_corpus),
        report=of(inputs.embeddings_report),
        source_embeddings=of(inputs.source_embeddings),
    output:
        temp(touch("<results>/{model}/shards/embeddings/{row}/{shard}")),
    log:
        "<results>/{model}/logs/shards/embeddings/{row}/{shard}.log",
    benchmark:
        "<results>/{model}/benchmarks/shards/embeddings/{row}/{shard}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        gpu=resources.gpus,
        mem_mb=resources.memory(1.0, 2000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.embeddings),
    message:
        "{wildcards.model}: embeddings of {wildcards.row}, {wildcards.shard}"
    shell:
        stage(
            "measure.embeddings",
            "--model {input.model[0]:q} --facts {input.facts:q} --reference {input.reference[0]:q}"
            " --reference-facts {input.reference_facts:q} --corpus {input.corpus:q} --out {output:q}"
            " --shard {wildcards.shard}",
        )


rule shard_code:
    input:
        model=of(inputs.gguf),
        facts=of(inputs.facts),
        problems=of(inputs.problems),
    output:
        temp(touch("<results>/{model}/shards/humaneval/{row}/{shard}")),
    log:
        "<results>/{model}/logs/shards/humaneval/{row}/{shard}.log",
    benchmark:
        "<results>/{model}/benchmarks/shards/humaneval/{row}/{shard}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        gpu=resources.gpus,
        mem_mb=resources.memory(1.0, 4000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.humaneval),
    message:
        "{wildcards.model}: HumanEval of {wildcards.row}, {wildcards.shard}"
    shell:
        stage(
            "evaluate.humaneval",
            "--model {input.model[0]:q} --facts {input.facts:q} --problems {input.problems:q} --out {output:q}"
            " --samples {output:q} --shard {wildcards.shard}",
        )
