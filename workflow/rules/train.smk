rule train:
    input:
        data=ancient(dataset_of),
        needs=needed_records,
        changed=changed_records,
    output:
        [f"checkpoints/{TIER}/{run}/settings.json" for run in RUNS],
    log:
        f"logs/{TIER}/{JOB}/train.log",
    benchmark:
        f"logs/{TIER}/{JOB}/train.benchmark.tsv"
    conda:
        "../envs/atlas.yaml"
    threads: asked("threads")
    resources:
        mem_mb=asked("memory_mb"),
        runtime=asked("minutes", sum_seeds=True),
        gpu=asked("gpus"),
    params:
        atlas=ATLAS,
        tier=TIER,
        cells=cells,
        fingerprints=fingerprints,
        # Short runs are evaluated where all is loaded; the rule evaluate then picks the numbers up.
        options="--evaluate" if STUDY.batch_seeds else "",
    shell:
        "{params.atlas} train --tier {params.tier} {params.options} {params.cells:q} >> {log} 2>&1"
