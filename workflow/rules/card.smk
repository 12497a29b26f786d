# The model card, written from the measurements.


rule write_card:
    input:
        described=lambda w: described_in(w.model),
        measured=lambda w: measured_in(w.model),
    output:
        card=f"{RESULTS}/{{model}}/card/README.md",
        bits=report(
            f"{RESULTS}/{{model}}/card/plots/bits.svg",
            caption="../report/bits.rst",
            category="{model}",
        ),
        sizes=report(
            f"{RESULTS}/{{model}}/card/plots/size-perplexity.svg",
            caption="../report/size-perplexity.rst",
            category="{model}",
        ),
    log:
        f"{RESULTS}/{{model}}/logs/card.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/card.tsv"
    wildcard_constraints:
        model=names(model for model in cfg.models if cfg.bench_of(model).perplexity),
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=lambda w: card_spec(w.model),
    message:
        "{wildcards.model}: model card"
    shell:
        "python -m quantmill.card.write --spec {params.spec:q} --card {output.card:q} --log {log:q}"
        f" --results {RESULTS_WORD}/{{wildcards.model}} --plots {RESULTS_WORD}/{{wildcards.model}}/card/plots"


# Without a perplexity there is nothing to draw sizes against.
use rule write_card as write_card_without_perplexity with:
    output:
        card=f"{RESULTS}/{{model}}/card/README.md",
        bits=report(
            f"{RESULTS}/{{model}}/card/plots/bits.svg",
            caption="../report/bits.rst",
            category="{model}",
        ),
    wildcard_constraints:
        model=names(model for model in cfg.models if not cfg.bench_of(model).perplexity),
