# What is made, for those who download it: shown; and uploaded with --config confirm=yes. It has no
# output, so that it is done whenever it is asked for, and never as a part of anything else.


rule publish:
    input:
        [file for model in PUBLISHED for file in results_of(model)],
    log:
        f"{RESULTS}/logs/publish.log",
    localrule: True
    conda:
        "../../envs/quantmill.yaml"
    params:
        spec=lambda w: publish_spec(),
    message:
        "publishing"
    shell:
        "python -m quantmill.publish.upload --spec {params.spec:q}"
        f" --results {RESULTS_WORD} --log {{log:q}}"
