"""Report: what was trained, on what, at what price, and how good it is.

reads   manifests and scores of the reported runs, and what stands beside the manifests: metrics, provenance, tokenizer evaluation
writes  results/report/: report.md, report.html
"""


rule report_write:
    """Write the report of every reported run."""
    input:
        runs=[model(name, phase, "manifest.json") for name in reported_runs() for phase in EXPERIMENT.runs[name].phases],
        scores=every_score(reported_runs()),
        tokenizers=unique(tokenizer_manifest(EXPERIMENT.runs[name].tokenizer) for name in reported_runs()),
        tokens=every_tokens(reported_runs()),
        sources=every_fetched(reported_runs()),
        text=prepared_text(reported_runs()),
        contamination=overlap_tables(),
    output:
        markdown=report("results/report/report.md", caption="../reports/report.rst", category="Report", labels={"format": "Markdown"}),
        html=report("results/report/report.html", caption="../reports/report.rst", category="Report", labels={"format": "HTML"}),
    params:
        config=canonical_json(experiments.dump(EXPERIMENT.report)),
    log:
        "logs/report/report.log",
    benchmark:
        "benchmarks/report/report.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=runtime_of("report_write"),
    shell:
        """
        nanochat report \
            --config {params.config:q} \
            --run-manifests {input.runs:q} \
            --scores {input.scores:q} \
            --tokenizers {input.tokenizers:q} \
            --tokens {input.tokens:q} \
            --sources {input.sources:q} \
            --text {input.text:q} \
            --contamination {input.contamination:q} \
            --markdown {output.markdown:q} \
            --html {output.html:q} \
            2>&1 | keep_log {log:q}
        """
