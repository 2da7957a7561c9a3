rule evaluate:
    input:
        data=ancient(dataset_of),
        due=lambda wildcards: due(True),
    output:
        touch(f"{DONE}/{JOB}/evaluated"),
    log:
        f"logs/{TIER}/{JOB}/evaluate.log",
    conda:
        "../envs/atlas.yaml"
    threads: asked("threads")
    resources:
        mem_mb=asked("memory_mb"),
        runtime=asked("minutes"),
        gpu=asked("all_gpus"),
        nodes=asked("nodes"),
        tasks=asked("nodes"),
    params:
        atlas=ATLAS,
        tier=TIER,
        cells=cells,
    shell:
        "{params.atlas} evaluate --tier {params.tier} {params.cells:q} > {log:q} 2>&1"


rule metrics:
    # One run's numbers as a target: snakemake -- results/<tier>/runs/<task>/<dataset>/<method>/seed<k>/metrics.json
    input:
        done=lambda wildcards: stamps(measured_run(wildcards)),
        due=lambda wildcards: due(stamps(measured_run(wildcards))),
    output:
        update(f"{RESULTS}/runs/{ROW}/seed{{seed}}/metrics.json"),
    log:
        f"logs/{TIER}/{ROW}/seed{{seed}}/metrics.log",
    conda:
        "../envs/atlas.yaml"
    shell:
        "test -s {output:q} || {{ echo {output:q} was not made > {log:q}; exit 1; }}"
