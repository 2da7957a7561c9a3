rule acquire:
    input:
        due=lambda wildcards: due(dataset_due(wildcards)),
    output:
        update("data/{dataset}/manifest.json"),
    log:
        "logs/acquire/{dataset}.log",
    retries: 2
    conda:
        "../envs/atlas.yaml"
    params:
        atlas=ATLAS,
        tier=TIER,
    shell:
        "{params.atlas} acquire --tier {params.tier} {wildcards.dataset:q} > {log:q} 2>&1"
