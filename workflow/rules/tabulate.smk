rule tabulate:
    input:
        runs=lambda wildcards: stamps(runs_of_table(wildcards)),
        due=lambda wildcards: due((wildcards.task, wildcards.dataset) in todo().tables),
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
    shell:
        "{params.atlas} table --tier {params.tier} {wildcards.task:q}/{wildcards.dataset:q} > {log:q} 2>&1"
