rule train:
    input:
        acquired=dataset_to_train_on(made_now=True),
        kept=ancient(dataset_to_train_on(made_now=False)),
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
        again=lambda wildcards: again(),
    shell:
        # What is trained is evaluated at once, without a second job.
        "{params.atlas} train --tier {params.tier} --evaluate {params.again} {params.cells:q} >> {log:q} 2>&1"
