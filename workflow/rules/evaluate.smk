rule evaluate:
    input:
        data=ancient(dataset_of),
        records=[f"checkpoints/{TIER}/{run}/settings.json" for run in RUNS],
        changed=changed_metrics,
    output:
        [f"{RESULTS}/runs/{run}/metrics.json" for run in RUNS],
    log:
        f"logs/{TIER}/{JOB}/evaluate.log",
    benchmark:
        f"logs/{TIER}/{JOB}/evaluate.benchmark.tsv"
    conda:
        "../envs/atlas.yaml"
    threads: asked("threads")
    resources:
        mem_mb=asked("memory_mb"),
        runtime=asked("minutes"),
        gpu=asked("gpus"),
    params:
        atlas=ATLAS,
        tier=TIER,
        cells=cells,
        fingerprints=fingerprints,
    shell:
        "{params.atlas} evaluate --tier {params.tier} {params.cells:q} > {log} 2>&1"
