rule judge:
    input:
        runs=lambda wildcards: stamps(STUDY.runs),
        due=lambda wildcards: due(todo().page),
    output:
        csv=report(
            f"{RESULTS}/claims.csv", caption="../report/claims.rst", category="claims"
        ),
        values=f"{RESULTS}/claims-values.csv",
        md=f"{RESULTS}/claims.md",
    log:
        f"logs/{TIER}/claims.log",
    conda:
        "../envs/atlas.yaml"
    params:
        atlas=ATLAS,
        tier=TIER,
    shell:
        "{params.atlas} claims --tier {params.tier} > {log:q} 2>&1"


rule report:
    input:
        made=lambda wildcards: shown_files(made_now=True),
        kept=ancient(lambda wildcards: shown_files(made_now=False)),
        due=lambda wildcards: due(todo().page),
    output:
        html=f"{RESULTS}/report.html",
        md=f"{RESULTS}/report.md",
        summary=f"{RESULTS}/summary.json",
    log:
        f"logs/{TIER}/report.log",
    conda:
        "../envs/atlas.yaml"
    params:
        atlas=ATLAS,
        tier=TIER,
    shell:
        "{params.atlas} report --tier {params.tier} > {log:q} 2>&1"
