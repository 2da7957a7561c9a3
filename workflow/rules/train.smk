rule train:
    input:
        data=ancient(dataset_of),
        needs=needed_records,
        changed=changed_records,
    output:
        [f"checkpoints/{TIER}/{ROW}{seed}/settings.json" for seed in SEEDS],
    log:
        f"logs/{TIER}/{ROW}{SEED}/train.log",
    benchmark:
        f"logs/{TIER}/{ROW}{SEED}/train.benchmark.tsv"
    params:
        atlas=ATLAS,
        tier=TIER,
        cells=cells,
        fingerprints=fingerprints,
    threads: asked("threads")
    resources:
        mem_mb=asked("memory_mb"),
        runtime=asked("minutes", sum_seeds=True),
        gpu=asked("gpus"),
    shell:
        "{params.atlas} train --tier {params.tier} {params.cells:q} >> {log} 2>&1"
