"""Prepare: the text of a corpus without what its filters leave out. Only of corpora that have a `prepare:`; others are used as fetched.

reads   the fetched text of the corpus, the fetched rows of the evaluations it is held against
writes  results/text/{corpus}/: CHUNK.kept.npy, removed.json, and manifest.json last; this judges all text, since copies are found across chunks
        results/text/{corpus}/{chunk}/: parquet shards, and manifest.json last
"""


rule prepare_judge:
    """Decide which documents of a corpus stay."""
    input:
        text=lambda wildcards: [fetched(chunk.source, chunk.part) for chunk in chunks(wildcards.corpus)],
        evaluations=lambda wildcards: unique(fetched(source) for source, _ in experiments.evaluation_rows(EXPERIMENT, wildcards.corpus)),
    output:
        removed="results/text/{corpus}/removed.json",
        manifest="results/text/{corpus}/manifest.json",
    params:
        config=lambda wildcards: canonical_json(experiments.prepare_config(EXPERIMENT, wildcards.corpus)),
    wildcard_constraints:
        corpus=one_of(prepared_corpora()),
    log:
        "logs/prepare/{corpus}.log",
    benchmark:
        "benchmarks/prepare/{corpus}.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 8
    resources:
        mem_mb=8000,
        runtime=runtime_of("prepare_judge"),
    shell:
        """
        nanochat prepare \
            --config {params.config:q} \
            --text {input.text:q} \
            --evaluations {input.evaluations:q} \
            --workers {threads} \
            --manifest {output.manifest:q} \
            2>&1 | keep_log {log:q}
        """


rule prepare:
    """Write the documents of one chunk that stay."""
    input:
        text=lambda wildcards: fetched_chunk(wildcards.corpus, wildcards.chunk),
        judged="results/text/{corpus}/manifest.json",
    output:
        manifest="results/text/{corpus}/{chunk}/manifest.json",
    params:
        config=lambda wildcards: canonical_json(experiments.prepare_chunk_config(chunks_by_name(wildcards.corpus)[wildcards.chunk])),
    wildcard_constraints:
        corpus=one_of(prepared_corpora()),
    log:
        "logs/prepare/{corpus}/{chunk}.log",
    benchmark:
        "benchmarks/prepare/{corpus}/{chunk}.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=runtime_of("prepare"),
    shell:
        """
        nanochat prepare \
            --config {params.config:q} \
            --text {input.text:q} \
            --judged {input.judged:q} \
            --manifest {output.manifest:q} \
            2>&1 | keep_log {log:q}
        """
