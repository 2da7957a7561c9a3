rule judge:
    input:
        evaluated(STUDY.runs),
    output:
        csv=report(
            f"{RESULTS}/claims.csv", caption="../report/claims.rst", category="claims"
        ),
        md=f"{RESULTS}/claims.md",
    log:
        f"logs/{TIER}/claims.log",
    conda:
        "../envs/atlas.yaml"
    params:
        atlas=ATLAS,
        tier=TIER,
    shell:
        "{params.atlas} claims --tier {params.tier} > {log} 2>&1"


rule report:
    input:
        [table_file(task, dataset, "csv") for task, dataset in STUDY.tables],
        f"{RESULTS}/claims.csv",
    output:
        html=f"{RESULTS}/report.html",
        md=f"{RESULTS}/report.md",
    log:
        f"logs/{TIER}/report.log",
    conda:
        "../envs/atlas.yaml"
    params:
        atlas=ATLAS,
        tier=TIER,
    shell:
        "{params.atlas} report --tier {params.tier} > {log} 2>&1"
