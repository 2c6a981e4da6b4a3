"""Contamination: how many items of each evaluation share words with the training text of a corpus. Only with `report: {contamination: true}`.

reads   the training text of the corpus, fetched or prepared; the fetched rows of what the reported runs evaluate
writes  results/contamination/{corpus}.json
"""


rule contamination:
    """Count the items that stand, in part, in the training text of one corpus."""
    input:
        text=lambda wildcards: corpus_text(wildcards.corpus, "train"),
        evaluations=lambda wildcards: overlap_data(wildcards.corpus),
    output:
        table="results/contamination/{corpus}.json",
    params:
        config=lambda wildcards: canonical_json(experiments.contamination_config(EXPERIMENT, wildcards.corpus)),
    log:
        "logs/contamination/{corpus}.log",
    benchmark:
        "benchmarks/contamination/{corpus}.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 8
    resources:
        mem_mb=8000,
        runtime=240,
    shell:
        """
        nanochat contamination \
            --config {params.config:q} \
            --text {input.text:q} \
            --evaluations {input.evaluations:q} \
            --workers {threads} \
            --table {output.table:q} \
            2>&1 | keep_log {log:q}
        """
