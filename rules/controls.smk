# Which heads are scaled: the top of a ranking, and random ones to compare with.


rule select_heads:
    """The top k heads of a ranking among the candidate layers."""
    input:
        ranking="<results>/rankings/{dataset}.csv",
    output:
        "<results>/heads/{dataset}/{method}-k{k}.csv",
    log:
        "<logs>/select_heads/{dataset}/{method}-k{k}.log",
    benchmark:
        "<benchmarks>/select_heads/{dataset}/{method}-k{k}.tsv"
    priority: AWAITED
    localrule: True  # less work than it is to start a job on a cluster
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        layers=candidate_layers(config["heads"], MODEL),
        code=code_hash("select_heads"),
    script:
        "../scripts/select_heads.py"


rule draw_controls:
    """Random heads, as many in each layer as the first method selects there, and none of those."""
    input:
        selected=f"<results>/heads/{{dataset}}/{config['heads']['methods'][0]}-k{{k}}.csv",
    output:
        "<results>/heads/{dataset}/random-k{k}-d{draw}.csv",
    log:
        "<logs>/draw_controls/{dataset}/random-k{k}-d{draw}.log",
    benchmark:
        "<benchmarks>/draw_controls/{dataset}/random-k{k}-d{draw}.tsv"
    priority: AWAITED
    localrule: True  # less work than it is to start a job on a cluster
    conda:
        "../envs/tables.yaml"
    resources:
        mem_mb=by_attempt(1000),
        runtime=by_attempt(10),
    params:
        n_heads=MODEL["heads"],
        seed=config["seed"],
        code=code_hash("draw_controls"),
    script:
        "../scripts/draw_controls.py"
