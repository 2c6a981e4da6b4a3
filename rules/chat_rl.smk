"""Reinforcement learning on problems whose answers can be graded. Only in runs that ask for it.

reads   the model of the phase before, the tokenizer, the fetched data of the tasks
writes  results/{run}/chat_rl/: model.safetensors, model.json, and manifest.json last
        undeclared, so that it survives a failed attempt: resume/, metrics.jsonl, heartbeat.json, provenance.json
"""


rule chat_rl:
    """Go on from the model of the phase before: sft where the run has it, else mid or base."""
    input:
        model=lambda wildcards: model(wildcards.run, parent_phase(wildcards.run, "rl"), "manifest.json"),
        parent=lambda wildcards: ancient(model(wildcards.run, parent_phase(wildcards.run, "rl"), "model.safetensors")),
        description=lambda wildcards: ancient(model(wildcards.run, parent_phase(wildcards.run, "rl"), "model.json")),
        tokenizer=lambda wildcards: tokenizer_manifest(EXPERIMENT.runs[wildcards.run].tokenizer),
        data=lambda wildcards: tuning_data(EXPERIMENT.runs[wildcards.run], "chat_rl"),
    output:
        weights="results/{run}/chat_rl/model.safetensors",
        description="results/{run}/chat_rl/model.json",
        manifest=report(
            "results/{run}/chat_rl/manifest.json",
            caption="../reports/model.rst",
            category="Models",
            labels={"run": "{run}", "stage": "chat_rl"},
        ),
    params:
        identity=lambda wildcards: canonical_json(experiments.identity(experiments.tune_config(EXPERIMENT.runs[wildcards.run], "chat_rl"))),
        # what follows from outputs is not compared by snakemake: housekeeping is handed on and reruns nothing
        config=lambda wildcards, output: canonical_json(experiments.tune_config(EXPERIMENT.runs[wildcards.run], "chat_rl")),
        gpus=lambda wildcards, resources: gpus_of_each_node(resources),
        pace=pace_of("chat_rl"),
    log:
        "logs/chat_rl/{run}.log",
    benchmark:
        "benchmarks/chat_rl/{run}.tsv"
    conda:
        "../envs/nanochat.yaml"
    priority: 1
    threads: 64  # all there are: snakemake lowers it to --cores
    resources:
        device="auto",
        gpu=0,
        mem_mb=4000,
        nodes=1,
        runtime=runtime_of("chat_rl"),
    shell:
        """
        on_nodes {resources.nodes} {params.gpus} nanochat chat_rl \
            --config {params.config:q} \
            --model {input.model:q} \
            --tokenizer {input.tokenizer:q} \
            --data {input.data:q} \
            --weights {output.weights:q} \
            --manifest {output.manifest:q} \
            --device "$(device {params.gpus} {resources.device})" \
            --ranks "$(ranks {params.gpus})" \
            --compile off \
            --threads "$(threads_per_rank {threads} {params.gpus})" \
            --max-seconds "$(seconds_to_train {resources.runtime})" {params.pace} \
            2>&1 | keep_log {log:q}
        """
