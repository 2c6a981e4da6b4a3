"""Preflight: everything that a stage can die of is checked before the first one trains. It runs where snakemake runs, in a second.

reads   the fetched manifests of the whole experiment, whatever target was asked for, but for what was purged after its last use
writes  results/preflight.json, one entry per check; every training job of the same call waits for it (start.smk: train_last)
"""


localrules:
    preflight,


rule preflight:
    """Check the data of every stage, the installation and the disk. A problem stops the workflow before anything trains."""
    input:
        sources=lambda wildcards: unique(need.manifest for need in preflight_needs()),
    output:
        checks=PREFLIGHT,
    params:
        config=lambda wildcards: canonical_json({"needs": [need.text for need in preflight_needs()]}),
    log:
        "logs/preflight/preflight.log",
    benchmark:
        "benchmarks/preflight/preflight.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    shell:
        """
        nanochat preflight \
            --config {params.config:q} \
            --sources {input.sources:q} \
            --checks {output.checks:q} \
            2>&1 | keep_log {log:q}
        """
