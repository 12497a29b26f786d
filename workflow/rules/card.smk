# The model card, written from the measurements.


# The Modelfiles are a folder: their names are the recipes', which a rule whose wildcard is the model
# cannot list.
rule write_card:
    input:
        described=of(targets.described),
        measured=of(targets.measured),
        nearest=of(targets.nearest),
        compared=of(inputs.compared),
        together=of(targets.together),
        verified=of(targets.verified),
    output:
        card="<results>/{model}/card/README.md",
        page=report(
            "<results>/{model}/card/index.html",
            caption="../report/page.rst",
            category="{model}",
            labels={"picture": "all, to point at and to filter"},
        ),
        withheld="<results>/{model}/card/withheld.json",
        modelfiles=directory("<results>/{model}/card/modelfiles"),
        sizes=report(
            "<results>/{model}/card/plots/size.svg",
            caption="../report/size.rst",
            category="{model}",
            labels={"picture": "size against quality"},
        ),
        sizes_dark="<results>/{model}/card/plots/size-dark.svg",
        bits=report(
            "<results>/{model}/card/plots/bits.svg",
            caption="../report/bits.rst",
            category="{model}",
            labels={"picture": "bits by layer and role"},
        ),
        bits_dark="<results>/{model}/card/plots/bits-dark.svg",
    log:
        "<results>/{model}/logs/card.log",
    benchmark:
        "<results>/{model}/benchmarks/card.tsv"
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=spec_of(card_specs.card),
        results=subpath(output.card, ancestor=2),
        plots=subpath(output.sizes, parent=True),
    message:
        "{wildcards.model}: model card"
    shell:
        stage(
            "card.write",
            "--card {output.card:q} --results {params.results:q} --plots {params.plots:q}",
        )


rule draw_sensitivity:
    input:
        sensitivity=ancient("<results>/{model}/sensitivity.tsv"),
        report="<results>/{model}/sensitivity.json",
    output:
        drawn=report(
            "<results>/{model}/card/plots/sensitivity.svg",
            caption="../report/sensitivity.rst",
            category="{model}",
            labels={"picture": "what each tensor is worth"},
        ),
        dark="<results>/{model}/card/plots/sensitivity-dark.svg",
    log:
        "<results>/{model}/logs/sensitivity-plot.log",
    benchmark:
        "<results>/{model}/benchmarks/sensitivity-plot.tsv"
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    resources:
        mem_mb=1000,
    params:
        spec=spec_of(card_specs.sensitivity_plot),
    message:
        "{wildcards.model}: heat map of the sensitivity"
    shell:
        stage(
            "card.maps",
            "--sensitivity {input.sensitivity:q} --out {output.drawn:q}",
        )
