# The model card, written from the measurements.


# A Modelfile.<recipe> for each file comes beside the card: their names are the recipes', which a rule
# whose wildcard is the model cannot list.
rule write_card:
    input:
        described=lambda w: described_in(w.model),
        measured=lambda w: measured_in(w.model),
        rivals=lambda w: rivals_of(w.model),
    output:
        card=f"{RESULTS}/{{model}}/card/README.md",
        page=report(
            f"{RESULTS}/{{model}}/card/index.html",
            caption="../report/page.rst",
            category="{model}",
            labels={"picture": "all, to point at and to filter"},
        ),
        withheld=f"{RESULTS}/{{model}}/card/withheld.json",
        sizes=report(
            f"{RESULTS}/{{model}}/card/plots/size.svg",
            caption="../report/size.rst",
            category="{model}",
            labels={"picture": "size against quality"},
        ),
        sizes_dark=f"{RESULTS}/{{model}}/card/plots/size-dark.svg",
        bits=report(
            f"{RESULTS}/{{model}}/card/plots/bits.svg",
            caption="../report/bits.rst",
            category="{model}",
            labels={"picture": "bits by layer and role"},
        ),
        bits_dark=f"{RESULTS}/{{model}}/card/plots/bits-dark.svg",
    log:
        f"{RESULTS}/{{model}}/logs/card.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/card.tsv"
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=lambda w: argument(card_spec(w.model)),
    message:
        "{wildcards.model}: model card"
    shell:
        "python -m quantmill.card.write --spec {params.spec:q} --card {output.card:q}"
        " --log {log:q} --memory {resources.mem_mb}"
        f" --results {RESULTS_WORD}/{{wildcards.model}} --plots {RESULTS_WORD}/{{wildcards.model}}/card/plots"


rule draw_sensitivity:
    input:
        damages=ancient(f"{RESULTS}/{{model}}/sensitivity.tsv"),
        report=f"{RESULTS}/{{model}}/sensitivity.json",
    output:
        drawn=report(
            f"{RESULTS}/{{model}}/card/plots/sensitivity.svg",
            caption="../report/sensitivity.rst",
            category="{model}",
            labels={"picture": "what each tensor is worth"},
        ),
        dark=f"{RESULTS}/{{model}}/card/plots/sensitivity-dark.svg",
    log:
        f"{RESULTS}/{{model}}/logs/sensitivity-plot.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/sensitivity-plot.tsv"
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=lambda w: argument(sensitivity_plot_spec(w.model)),
    message:
        "{wildcards.model}: heat map of the sensitivity"
    shell:
        "python -m quantmill.card.maps --spec {params.spec:q} --damages {input.damages:q}"
        " --out {output.drawn:q} --log {log:q} --memory {resources.mem_mb}"
