"""Contamination: how many items of each evaluation share words with what the reported runs are trained on. Only with `report: {contamination: true}`.

reads   the training text of a corpus, fetched or prepared, or the fetched sources of a mixture; the fetched rows of what is evaluated
writes  results/contamination/{text}.json, where a text is the name of a corpus or RUN.STAGE
        undeclared, so that a new evaluation counts itself alone: rows/ beside it
"""


rule contamination:
    """Count the items that stand, in part, in one corpus or one mixture."""
    input:
        text=lambda wildcards: corpus_text(wildcards.text, "train") if wildcards.text in EXPERIMENT.corpora else [],
        data=lambda wildcards: overlap_mixture(wildcards.text),
        evaluations=lambda wildcards: overlap_data(wildcards.text),
    output:
        table="results/contamination/{text}.json",
    params:
        config=lambda wildcards: canonical_json(experiments.contamination_config(EXPERIMENT, wildcards.text)),
    log:
        "logs/contamination/{text}.log",
    benchmark:
        "benchmarks/contamination/{text}.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: lambda wildcards: 8 if wildcards.text in EXPERIMENT.corpora else 1
    resources:
        mem_mb=8000,
        runtime=240,
    shell:
        """
        nanochat contamination \
            --config {params.config:q} \
            --text {input.text:q} \
            --data {input.data:q} \
            --evaluations {input.evaluations:q} \
            --workers {threads} \
            --table {output.table:q} \
            2>&1 | keep_log {log:q}
        """
