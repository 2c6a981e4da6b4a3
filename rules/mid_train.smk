"""Mid-training: teach a pretrained model conversations, multiple choice and tools; loss on every token.

reads   the base model, the tokenizer, the fetched data of the mixture
writes  results/{run}/mid_train/: model.safetensors, model.json, optimizer.safetensors, and manifest.json last
        undeclared, so that it survives a failed attempt: resume/, metrics.jsonl, heartbeat.json, provenance.json
"""


rule mid_train:
    """Go on from the base model with a mixture of conversations."""
    input:
        model=lambda wildcards: model(wildcards.run, parent_phase(wildcards.run, "mid"), "manifest.json"),
        parent=lambda wildcards: ancient(model(wildcards.run, parent_phase(wildcards.run, "mid"), "model.safetensors")),
        description=lambda wildcards: ancient(model(wildcards.run, parent_phase(wildcards.run, "mid"), "model.json")),
        optimizer=lambda wildcards: (
            ancient(model(wildcards.run, parent_phase(wildcards.run, "mid"), "optimizer.safetensors"))
            if EXPERIMENT.runs[wildcards.run].mid_train.warm_start_optimizer
            else []
        ),
        tokenizer=lambda wildcards: tokenizer_manifest(EXPERIMENT.runs[wildcards.run].tokenizer),
        data=lambda wildcards: tuning_data(EXPERIMENT.runs[wildcards.run], "mid_train"),
    output:
        weights="results/{run}/mid_train/model.safetensors",
        description="results/{run}/mid_train/model.json",
        optimizer="results/{run}/mid_train/optimizer.safetensors",
        manifest=report(
            "results/{run}/mid_train/manifest.json",
            caption="../reports/model.rst",
            category="Models",
            labels={"run": "{run}", "stage": "mid_train"},
        ),
    params:
        identity=lambda wildcards: canonical_json(experiments.identity(experiments.tune_config(EXPERIMENT.runs[wildcards.run], "mid_train"))),
        # what follows from outputs is not compared by snakemake: housekeeping is handed on and reruns nothing
        config=lambda wildcards, output: canonical_json(experiments.tune_config(EXPERIMENT.runs[wildcards.run], "mid_train")),
        gpus=lambda wildcards, resources: gpus_of_each_node(resources),
        pace=pace_of("mid_train"),
    log:
        "logs/mid_train/{run}.log",
    benchmark:
        "benchmarks/mid_train/{run}.tsv"
    conda:
        "../envs/nanochat.yaml"
    priority: 1
    threads: 64  # all there are: snakemake lowers it to --cores
    resources:
        compile="auto",
        device="auto",
        gpu=0,
        mem_mb=4000,
        nodes=1,
        runtime=runtime_of("mid_train"),
    shell:
        """
        on_nodes {resources.nodes} {params.gpus} nanochat mid_train \
            --config {params.config:q} \
            --model {input.model:q} \
            --tokenizer {input.tokenizer:q} \
            --data {input.data:q} \
            --weights {output.weights:q} \
            --manifest {output.manifest:q} \
            --device "$(device {params.gpus} {resources.device})" \
            --ranks "$(ranks {params.gpus})" \
            --compile {resources.compile} \
            --threads "$(threads_per_rank {threads} {params.gpus})" \
            --max-seconds "$(seconds_to_train {resources.runtime})" {params.pace} \
            2>&1 | keep_log {log:q}
        """
