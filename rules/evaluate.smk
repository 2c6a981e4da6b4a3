"""Evaluate: one phase of a run on one task.

reads   the model, the tokenizer, the fetched data of the task; bits per byte: the validation tokens of the run's corpus
writes  results/{run}/scores/{phase}/{task}.json
        undeclared, so that it survives a failed attempt and asks nothing twice: answers/ and {task}.items.jsonl beside it
"""


rule evaluate_task:
    """Score one model on one task."""
    input:
        model=lambda wildcards: model(wildcards.run, wildcards.phase, "manifest.json"),
        weights=lambda wildcards: ancient(model(wildcards.run, wildcards.phase, "model.safetensors")),
        description=lambda wildcards: ancient(model(wildcards.run, wildcards.phase, "model.json")),
        tokenizer=lambda wildcards: tokenizer_manifest(EXPERIMENT.runs[wildcards.run].tokenizer),
        data=lambda wildcards: task_data(EXPERIMENT.runs[wildcards.run], wildcards.task),
        tokens=lambda wildcards: validation_tokens(wildcards, "manifest.json"),
        rows=lambda wildcards: ancient(validation_tokens(wildcards, "tokens.bin")),
    output:
        score=report(
            "results/{run}/scores/{phase}/{task}.json",
            caption="../reports/score.rst",
            category="Scores",
            labels={"run": "{run}", "phase": "{phase}", "task": "{task}"},
        ),
    params:
        identity=lambda wildcards: canonical_json(experiments.identity(experiments.evaluate_config(EXPERIMENT.runs[wildcards.run], wildcards.task))),
        # what follows from outputs is not compared by snakemake: housekeeping is handed on and reruns nothing
        config=lambda wildcards, output: canonical_json(experiments.evaluate_config(EXPERIMENT.runs[wildcards.run], wildcards.task)),
    log:
        "logs/evaluate/{run}.{phase}.{task}.log",
    benchmark:
        "benchmarks/evaluate/{run}.{phase}.{task}.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 1
    resources:
        device="auto",
        gpu=0,
        mem_mb=2000,
        runtime=runtime_of("evaluate_task"),
    shell:
        """
        nanochat evaluate \
            --config {params.config:q} \
            --model {input.model:q} \
            --tokenizer {input.tokenizer:q} \
            --data {input.data:q} \
            --tokens {input.tokens:q} \
            --score {output.score:q} \
            --device "$(device {resources.gpu} {resources.device})" \
            --ranks "$(ranks {resources.gpu})" \
            --threads "$(threads_per_rank {threads} {resources.gpu})" \
            2>&1 | keep_log {log:q}
        """
