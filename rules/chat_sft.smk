"""Chat fine-tuning: loss on the tokens of the assistant only.

reads   the model of the phase before, the tokenizer, the fetched data of the mixture
writes  results/{run}/chat_sft/: model.safetensors, model.json, and manifest.json last
        undeclared, so that it survives a failed attempt: resume/, metrics.jsonl, heartbeat.json, provenance.json
"""


rule chat_sft:
    """Fine-tune the model of the phase before: mid where the run has it, else base."""
    input:
        model=lambda wildcards: model(wildcards.run, parent_phase(wildcards.run, "sft"), "manifest.json"),
        parent=lambda wildcards: ancient(model(wildcards.run, parent_phase(wildcards.run, "sft"), "model.safetensors")),
        description=lambda wildcards: ancient(model(wildcards.run, parent_phase(wildcards.run, "sft"), "model.json")),
        optimizer=lambda wildcards: (
            ancient(model(wildcards.run, parent_phase(wildcards.run, "sft"), "optimizer.safetensors"))
            if EXPERIMENT.runs[wildcards.run].chat_sft.warm_start_optimizer
            else []
        ),
        tokenizer=lambda wildcards: tokenizer_manifest(EXPERIMENT.runs[wildcards.run].tokenizer),
        data=lambda wildcards: tuning_data(EXPERIMENT.runs[wildcards.run], "chat_sft"),
    output:
        weights="results/{run}/chat_sft/model.safetensors",
        description="results/{run}/chat_sft/model.json",
        manifest=report(
            "results/{run}/chat_sft/manifest.json",
            caption="../reports/model.rst",
            category="Models",
            labels={"run": "{run}", "stage": "chat_sft"},
        ),
    params:
        identity=lambda wildcards: canonical_json(experiments.identity(experiments.tune_config(EXPERIMENT.runs[wildcards.run], "chat_sft"))),
        # what follows from outputs is not compared by snakemake: housekeeping is handed on and reruns nothing
        config=lambda wildcards, output: canonical_json(experiments.tune_config(EXPERIMENT.runs[wildcards.run], "chat_sft")),
        gpus=lambda wildcards, resources: gpus_of_each_node(resources),
        pace=pace_of("chat_sft"),
    log:
        "logs/chat_sft/{run}.log",
    benchmark:
        "benchmarks/chat_sft/{run}.tsv"
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
        runtime=runtime_of("chat_sft"),
    shell:
        """
        on_nodes {resources.nodes} {params.gpus} nanochat chat_sft \
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
