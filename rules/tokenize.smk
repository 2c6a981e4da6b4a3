"""Tokenize: one chunk of a corpus as fixed-length rows of token ids, ready to be memory-mapped.

reads   one fetched part of text, or one chunk of prepared text, the tokenizer
writes  results/tokens/{corpus}.{tokenizer}/{chunk}/: tokens.bin, and manifest.json last
"""


rule tokenize:
    """Encode and pack one chunk."""
    input:
        text=lambda wildcards: chunk_text(wildcards.corpus, wildcards.chunk),
        tokenizer="results/tokenizers/{tokenizer}/manifest.json",
    output:
        tokens="results/tokens/{corpus}.{tokenizer}/{chunk}/tokens.bin",
        manifest="results/tokens/{corpus}.{tokenizer}/{chunk}/manifest.json",
    params:
        config=lambda wildcards: canonical_json(
            experiments.tokenize_config(EXPERIMENT, wildcards.corpus, chunks_by_name(wildcards.corpus)[wildcards.chunk])
        ),
    log:
        "logs/tokenize/{corpus}.{tokenizer}/{chunk}.log",
    benchmark:
        "benchmarks/tokenize/{corpus}.{tokenizer}/{chunk}.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 4
    resources:
        mem_mb=4000,
        runtime=runtime_of("tokenize"),
    shell:
        """
        nanochat tokenize \
            --config {params.config:q} \
            --text {input.text:q} \
            --tokenizer {input.tokenizer:q} \
            --workers {threads} \
            --manifest {output.manifest:q} \
            2>&1 | keep_log {log:q}
        """
