# From raw downloads to the paper's tables and figures.
#   snakemake --cores all                                       the paper (config.yaml)
#   snakemake --cores all --configfile configs/demo.yaml        the demo
# docs/files.md says what each file is.


configfile: "config.yaml"


pathvars:
    results=f"results/{config.get('run')}",
    logs="<results>/logs",
    benchmarks="<results>/benchmarks",


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/models.smk"
include: "rules/generate.smk"
include: "rules/label.smk"
include: "rules/activations.smk"
include: "rules/pursuit.smk"
include: "rules/controls.smk"
include: "rules/score.smk"
include: "rules/publish.smk"


rule all:
    default_target: True
    input:
        rules.table2.input,
