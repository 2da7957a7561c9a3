rule train:
    input:
        data=ancient(dataset_of),
        needs=needed_by,
        due=lambda wildcards: due(True),
    output:
        touch(f"{DONE}/{JOB}/trained"),
    log:
        f"logs/{TIER}/{JOB}/train.log",
    conda:
        "../envs/atlas.yaml"
    threads: asked("threads")
    resources:
        mem_mb=asked("memory_mb"),
        runtime=asked("minutes", sum_seeds=True),
        gpu=asked("all_gpus"),
        nodes=asked("nodes"),
        tasks=asked("nodes"),
    params:
        atlas=ATLAS,
        tier=TIER,
        cells=cells,
        # Short runs are evaluated where all is loaded.
        options=lambda wildcards: again() + " --evaluate" * STUDY.batch_seeds,
    shell:
        "{params.atlas} train --tier {params.tier} {params.options} {params.cells:q} >> {log:q} 2>&1"
