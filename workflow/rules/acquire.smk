rule acquire:
    output:
        "data/{dataset}/manifest.json",
    log:
        "logs/acquire/{dataset}.log",
    params:
        atlas=ATLAS,
    retries: 2
    shell:
        "{params.atlas} acquire {wildcards.dataset} > {log} 2>&1"


rule changed:
    output:
        touch(temp(".atlas/changed/{outdated}")),
