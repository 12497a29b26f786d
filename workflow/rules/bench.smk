# What is measured of each file; the row `source` is the source itself.


# The source's own job makes its predictions, with which all others are compared; they
# are in the store, and made again where it has lost them. Only then is the source needed.
rule measure_divergence:
    input:
        model=of(inputs.gguf),
        facts=of(inputs.facts),
        reference=of(inputs.source),
        reference_facts="<results>/{model}/model.json",
        corpus=of(inputs.kld_corpus),
        report=of(inputs.kld_report),
        noise_floor=of(inputs.noise_floor),
        shards=shards.kld,
    output:
        "<results>/{model}/bench/{row}/kld.json",
    log:
        "<results>/{model}/logs/kld/{row}.log",
    benchmark:
        "<results>/{model}/benchmarks/kld/{row}.tsv"
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
        "{wildcards.model}: KL divergence of {wildcards.row}"
    shell:
        stage(
            "measure.divergence",
            "--model {input.model[0]:q} --facts {input.facts:q} --reference {input.reference[0]:q}"
            " --reference-facts {input.reference_facts:q} --corpus {input.corpus:q} --out {output:q}",
        )


# Of the same types rounded to nearest, beside a file that is rounded by gptq.
use rule measure_divergence as measure_nearest with:
    input:
        model=of(inputs.nearest_gguf),
        facts=of(inputs.nearest_facts),
        reference=of(inputs.source),
        reference_facts="<results>/{model}/model.json",
        corpus=of(inputs.kld_corpus),
        report=of(inputs.kld_report),
        noise_floor=of(inputs.noise_floor),
    output:
        "<results>/{model}/nearest/{row}.kld.json",
    log:
        "<results>/{model}/logs/nearest/{row}.kld.log",
    benchmark:
        "<results>/{model}/benchmarks/nearest/{row}.kld.tsv"
    wildcard_constraints:
        row=pattern(project.with_nearest),
    params:
        spec=spec_of(specs.nearest_kld),
    message:
        "{wildcards.model}: KL divergence of {wildcards.row}, rounded to nearest"


rule measure_perplexity:
    input:
        model=of(inputs.gguf),
        facts=of(inputs.facts),
        corpus=of(inputs.perplexity_corpus),
        report=of(inputs.perplexity_report),
        divergence=of(inputs.divergence),
        shards=shards.perplexity,
    output:
        "<results>/{model}/bench/{row}/perplexity.json",
    log:
        "<results>/{model}/logs/perplexity/{row}.log",
    benchmark:
        "<results>/{model}/benchmarks/perplexity/{row}.tsv"
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
        "{wildcards.model}: perplexity of {wildcards.row}"
    shell:
        stage(
            "measure.perplexity",
            "--model {input.model[0]:q} --facts {input.facts:q} --corpus {input.corpus:q}"
            " --out {output:q}",
        )


# Of encoders and rerankers. The source's own job embeds the texts once for all files.
rule measure_embeddings:
    input:
        model=of(inputs.gguf),
        facts=of(inputs.facts),
        reference=of(inputs.source),
        reference_facts="<results>/{model}/model.json",
        corpus=of(inputs.embeddings_corpus),
        report=of(inputs.embeddings_report),
        source_embeddings=of(inputs.source_embeddings),
        shards=shards.embeddings,
    output:
        "<results>/{model}/bench/{row}/embeddings.json",
    log:
        "<results>/{model}/logs/embeddings/{row}.log",
    benchmark:
        "<results>/{model}/benchmarks/embeddings/{row}.tsv"
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
        "{wildcards.model}: embeddings of {wildcards.row}"
    shell:
        stage(
            "measure.embeddings",
            "--model {input.model[0]:q} --facts {input.facts:q} --reference {input.reference[0]:q}"
            " --reference-facts {input.reference_facts:q} --corpus {input.corpus:q} --out {output:q}",
        )


# Of projectors. The source's own job makes the vectors once for all files.
rule measure_projector:
    input:
        model=of(inputs.gguf),
        facts=of(inputs.facts),
        reference=of(inputs.source),
        reference_facts="<results>/{model}/model.json",
        media=of(inputs.media),
        language_model=of(inputs.language_model),
        source_projected=of(inputs.source_projected),
    output:
        "<results>/{model}/bench/{row}/projector.json",
    log:
        "<results>/{model}/logs/projector/{row}.log",
    benchmark:
        "<results>/{model}/benchmarks/projector/{row}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        mem_mb=resources.memory(1.0, 2000, resources.seeing),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.projector),
    message:
        "{wildcards.model}: projector {wildcards.row}"
    shell:
        stage(
            "measure.projector",
            "--model {input.model[0]:q} --facts {input.facts:q} --reference {input.reference[0]:q}"
            " --reference-facts {input.reference_facts:q} --media {input.media:q}"
            " --language-model {input.language_model:q} --out {output:q}",
        )


# Of models with a draft head.
rule measure_draft:
    input:
        model=of(inputs.gguf),
        facts=of(inputs.facts),
        corpus=of(inputs.draft_corpus),
        report=of(inputs.draft_report),
    output:
        "<results>/{model}/bench/{row}/draft.json",
    log:
        "<results>/{model}/logs/draft/{row}.log",
    benchmark:
        "<results>/{model}/benchmarks/draft/{row}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    threads: resources.evaluation_cores
    resources:
        mem_mb=resources.memory(1.0, 2000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.draft),
    message:
        "{wildcards.model}: draft head of {wildcards.row}"
    shell:
        stage(
            "measure.draft",
            "--model {input.model[0]:q} --facts {input.facts:q} --corpus {input.corpus:q}"
            " --out {output:q}",
        )


rule measure_speed:
    input:
        model=of(inputs.gguf),
        facts=of(inputs.facts),
    output:
        "<results>/{model}/bench/{row}/speed.json",
    log:
        "<results>/{model}/logs/speed/{row}.log",
    benchmark:
        "<results>/{model}/benchmarks/speed/{row}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    # All cores even where fewer would do: nothing else may run beside it.
    threads: resources.cores
    resources:
        mem_mb=resources.memory(1.0, 2000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.speed),
    message:
        "{wildcards.model}: speed of {wildcards.row}"
    shell:
        stage(
            "measure.speed",
            "--model {input.model[0]:q} --facts {input.facts:q} --out {output:q}",
        )


rule measure_served:
    input:
        model=of(inputs.gguf),
        facts=of(inputs.facts),
        server=of(inputs.server),
        vocabulary=of(inputs.vocabulary),
    output:
        "<results>/{model}/bench/{row}/served.json",
    log:
        "<results>/{model}/logs/served/{row}.log",
    benchmark:
        "<results>/{model}/benchmarks/served/{row}.tsv"
    conda:
        "../../envs/quantmill.yaml"
    # As with the speed: nothing else may run beside it.
    threads: resources.cores
    resources:
        mem_mb=resources.memory(1.0, 4000),
        runtime=resources.runtime,
    params:
        spec=spec_of(specs.served),
    message:
        "{wildcards.model}: speed of {wildcards.row} behind a server"
    shell:
        stage(
            "serve.measure",
            "--model {input.model[0]:q} --facts {input.facts:q} --server {input.server:q}"
            " --vocabulary {input.vocabulary:q} --out {output:q}",
        )
