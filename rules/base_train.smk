"""Base training: pretrain a model on packed tokens.

reads   the token chunks of the run's corpus, the tokenizer
writes  results/{run}/base_train/: model.safetensors, model.json, optimizer.safetensors, and manifest.json last
        undeclared, so that it survives a failed attempt: resume/, metrics.jsonl, heartbeat.json, provenance.json
"""


rule base_train:
    """Pretrain one model. Exit code 75 means: stopped with its state saved, start it again."""
    input:
        tokens=lambda wildcards: tokens_of(EXPERIMENT.runs[wildcards.run]),
        rows=lambda wildcards: ancient(tokens_of(EXPERIMENT.runs[wildcards.run], "tokens.bin")),
        tokenizer=lambda wildcards: tokenizer_manifest(EXPERIMENT.runs[wildcards.run].tokenizer),
    output:
        weights="results/{run}/base_train/model.safetensors",
        description="results/{run}/base_train/model.json",
        optimizer="results/{run}/base_train/optimizer.safetensors",
        manifest=report(
            "results/{run}/base_train/manifest.json",
            caption="../reports/model.rst",
            category="Models",
            labels={"run": "{run}", "stage": "base_train"},
        ),
    params:
        identity=lambda wildcards: canonical_json(experiments.identity(base_train_config(wildcards.run))),
        # what follows from outputs is not compared by snakemake: housekeeping is handed on and reruns nothing
        config=lambda wildcards, output: canonical_json(base_train_config(wildcards.run)),
        gpus=lambda wildcards, resources: gpus_of_each_node(resources),
        pace=pace_of("base_train"),
    log:
        "logs/base_train/{run}.log",
    benchmark:
        "benchmarks/base_train/{run}.tsv"
    conda:
        "../envs/nanochat.yaml"
    priority: 1
    threads: 64  # all there are: snakemake lowers it to --cores, so that two trainers never share a laptop
    resources:
        compile="auto",
        device="auto",
        gpu=0,
        mem_mb=4000,
        nodes=1,
        runtime=runtime_of("base_train"),
    shell:
        """
        on_nodes {resources.nodes} {params.gpus} nanochat base_train \
            --config {params.config:q} \
            --tokens {input.tokens:q} \
            --tokenizer {input.tokenizer:q} \
            --weights {output.weights:q} \
            --manifest {output.manifest:q} \
            --device "$(device {params.gpus} {resources.device})" \
            --ranks "$(ranks {params.gpus})" \
            --compile {resources.compile} \
            --threads "$(threads_per_rank {threads} {params.gpus})" \
            --max-seconds "$(seconds_to_train {resources.runtime})" {params.pace} \
            2>&1 | keep_log {log:q}
        """
