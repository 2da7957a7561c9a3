rule tabulate:
    input:
        metrics=lambda wildcards: evaluated(
            STUDY.matching(wildcards.task, wildcards.dataset)
        ),
        changed=lambda wildcards: changed(
            table_file(wildcards.task, wildcards.dataset, "csv")
        ),
    output:
        csv=report(
            table_file("{task}", "{dataset}", "csv"),
            caption="../report/table.rst",
            category="{task}",
            subcategory="{dataset}",
        ),
        md=table_file("{task}", "{dataset}", "md"),
        tex=table_file("{task}", "{dataset}", "tex"),
        provenance=table_file("{task}", "{dataset}", "json"),
        figures=report(
            directory(f"{RESULTS}/figures/{{task}}/{{dataset}}"),
            patterns=["{name}.svg"],
            caption="../report/figure.rst",
            category="{task}",
            subcategory="{dataset}",
        ),
    log:
        f"logs/{TIER}/{{task}}/{{dataset}}/table.log",
    conda:
        "../envs/atlas.yaml"
    params:
        atlas=ATLAS,
        tier=TIER,
        fingerprints=table_fingerprints,
    shell:
        "{params.atlas} table --tier {params.tier} {wildcards.task}/{wildcards.dataset} > {log} 2>&1"
