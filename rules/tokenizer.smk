"""Tokenizer: a byte-level BPE vocabulary, and how it compares with GPT-2's and GPT-4's.

reads   the fetched or prepared text of the tokenizer's corpus, the reference vocabularies
writes  results/tokenizers/{tokenizer}/: tokenizer.json, token_bytes.json, evaluation.json, and manifest.json last
"""


rule tokenizer_train:
    """Train one tokenizer and measure it."""
    input:
        text=lambda wildcards: corpus_text(EXPERIMENT.tokenizers[wildcards.tokenizer].corpus),
        references=[fetched(source) for source in REFERENCES],
    output:
        tokenizer="results/tokenizers/{tokenizer}/tokenizer.json",
        token_bytes="results/tokenizers/{tokenizer}/token_bytes.json",
        evaluation=report(
            "results/tokenizers/{tokenizer}/evaluation.json",
            caption="../reports/tokenizer.rst",
            category="Tokenizers",
            labels={"tokenizer": "{tokenizer}"},
        ),
        manifest="results/tokenizers/{tokenizer}/manifest.json",
    params:
        config=lambda wildcards: canonical_json(experiments.tokenizer_config(EXPERIMENT, wildcards.tokenizer)),
    log:
        "logs/tokenizer/{tokenizer}.log",
    benchmark:
        "benchmarks/tokenizer/{tokenizer}.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 16
    resources:
        mem_mb=4000,
        runtime=runtime_of("tokenizer_train"),
    shell:
        """
        nanochat tokenizer \
            --config {params.config:q} \
            --text {input.text:q} \
            --references {input.references:q} \
            --tokenizer {output.tokenizer:q} \
            --token-bytes {output.token_bytes:q} \
            --evaluation {output.evaluation:q} \
            --manifest {output.manifest:q} \
            2>&1 | keep_log {log:q}
        """
