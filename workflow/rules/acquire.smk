rule acquire:
    output:
        "data/{dataset}/manifest.json",
    log:
        "logs/acquire/{dataset}.log",
    retries: 2
    conda:
        "../envs/atlas.yaml"
    params:
        atlas=ATLAS,
    shell:
        "{params.atlas} acquire {wildcards.dataset} > {log} 2>&1"
