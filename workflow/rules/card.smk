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
            f"{RESULTS}/{{model}}/card/plots/size-kld.svg",
            caption="../report/size-kld.rst",
            category="{model}",
        ),
    log:
        f"{RESULTS}/{{model}}/logs/card.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/card.tsv"
    wildcard_constraints:
        model=names(m for m in cfg.models if drawn_against(m) == "kld"),
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


# Sizes are drawn against the first measure that there is; against nothing where there is none.
use rule write_card as write_card_by_perplexity with:
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
    wildcard_constraints:
        model=names(m for m in cfg.models if drawn_against(m) == "perplexity"),


use rule write_card as write_card_without_sizes with:
    output:
        card=f"{RESULTS}/{{model}}/card/README.md",
        bits=report(
            f"{RESULTS}/{{model}}/card/plots/bits.svg",
            caption="../report/bits.rst",
            category="{model}",
        ),
    wildcard_constraints:
        model=names(m for m in cfg.models if drawn_against(m) is None),


rule draw_sensitivity:
    input:
        damages=ancient(f"{RESULTS}/{{model}}/sensitivity.tsv"),
        report=f"{RESULTS}/{{model}}/sensitivity.json",
    output:
        report(
            f"{RESULTS}/{{model}}/card/plots/sensitivity.svg",
            caption="../report/sensitivity.rst",
            category="{model}",
        ),
    log:
        f"{RESULTS}/{{model}}/logs/sensitivity-plot.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/sensitivity-plot.tsv"
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=lambda w: sensitivity_plot_spec(w.model),
    message:
        "{wildcards.model}: heat map of the sensitivity"
    shell:
        "python -m quantmill.card.plots --spec {params.spec:q} --damages {input.damages:q}"
        " --out {output:q} --log {log:q}"
