# From raw downloads to the paper's tables and figures.
#   snakemake --cores all                                       the paper (config.yaml)
#   snakemake --cores all --configfile configs/demo.yaml        the demo
# docs/files.md says what each file is.


from snakemake.utils import min_version

min_version("9.27.1")


configfile: f"{workflow.current_basedir}/config.yaml"


include: "rules/common.smk"


report: "report/workflow.rst"


include: "rules/data.smk"
include: "rules/models.smk"
include: "rules/generate.smk"
include: "rules/label.smk"
include: "rules/activations.smk"
include: "rules/pursuit.smk"
include: "rules/controls.smk"
include: "rules/score.smk"
include: "rules/publish.smk"
include: "rules/table1.smk"


if config["vision"]:

    include: "rules/vision.smk"


include: "rules/report.smk"


rule all:
    """The tables and figures, and all that lies in between, so that what is deleted is made anew."""
    default_target: True
    input:
        rules.table2.input,
        rules.table1.input,
        FIGURE1,
        "<results>/tables/published.csv",
        PAGES,
        collect("<resources>/{source}/provenance.json", source=used_sources(config)),
        MODEL_FILES,
        WEIGHTS,
        collect(
            [
                "<results>/prompts/{dataset}.parquet",
                "<results>/generations/{dataset}/baseline.parquet",
                "<results>/words/{dataset}.csv",
                "<results>/dictionaries/{dataset}.csv",
                "<results>/rankings/{dataset}.csv",
                "<results>/scores/{dataset}.parquet",
            ],
            dataset=DATASETS,
        ),
        branch(
            not config["words"]["file"],
            then=rules.labels.input,
        ),
        collect(RESPONSES, dataset=DATASETS),
        collect(EXPECTED, dataset=DATASETS),
        collect(rules.cache_activations.output, dataset=DATASETS),
        collect(
            "<results>/heads/{dataset}/{condition}.csv",
            dataset=DATASETS,
            condition=intervened_conditions(config["heads"]),
        ),
        collect(
            "<results>/generations/{dataset}/{condition}.parquet",
            dataset=DATASETS,
            condition=generated_conditions(config["heads"]),
        ),


include: "rules/audit.smk"
include: "rules/crate.smk"
include: "rules/estimate.smk"
