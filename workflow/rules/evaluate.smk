rule evaluate:
    input:
        data=ancient(dataset_of),
        records=[f"checkpoints/{TIER}/{ROW}{seed}/settings.json" for seed in SEEDS],
        changed=changed_metrics,
    output:
        [f"{RESULTS}/runs/{ROW}{seed}/metrics.json" for seed in SEEDS],
    log:
        f"logs/{TIER}/{ROW}{SEED}/evaluate.log",
    benchmark:
        f"logs/{TIER}/{ROW}{SEED}/evaluate.benchmark.tsv"
    params:
        atlas=ATLAS,
        tier=TIER,
        cells=cells,
        fingerprints=fingerprints,
    threads: asked("threads")
    resources:
        mem_mb=asked("memory_mb"),
        runtime=asked("minutes"),
        gpu=asked("gpus"),
    shell:
        "{params.atlas} evaluate --tier {params.tier} {params.cells:q} > {log} 2>&1"
