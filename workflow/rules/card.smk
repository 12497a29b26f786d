# The model card, written from the measurements.


rule write_card:
    input:
        described=lambda w: ancient(described_in(w.model)),
        # Not ancient: a measurement taken again gives other numbers under the same spec.
        measured=lambda w: measured_in(w.model),
    output:
        card=report(
            f"{RESULTS}/{{model}}/card/README.md",
            caption="../report/card.rst",
            category="{model}",
        ),
        plots=report(
            directory(f"{RESULTS}/{{model}}/card/plots"),
            patterns=["{name}.svg"],
            caption="../report/plots.rst",
            category="{model}",
        ),
    log:
        f"{RESULTS}/{{model}}/logs/card.log",
    benchmark:
        f"{RESULTS}/{{model}}/benchmarks/card.tsv"
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=lambda w: card_spec(w.model),
        results=lambda w: of(w.model, ""),
    message:
        "{wildcards.model}: model card"
    shell:
        "python -m quantmill.card.write --spec {params.spec:q} --results {params.results:q}"
        " --card {output.card:q} --plots {output.plots:q} --log {log:q}"
