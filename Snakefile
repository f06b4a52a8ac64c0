# From raw downloads to the paper's tables and figures, in the order of the data.
#   snakemake --cores all                                       the paper (config.yaml)
#   snakemake --cores all --configfile configs/demo.yaml        the demo
# docs/files.md says what each file is.


from snakemake.utils import min_version

min_version("9.27.1")


configfile: f"{workflow.current_basedir}/config.yaml"


include: "rules/common.smk"


report: "report/workflow.rst"


include: "rules/sources.smk"
include: "rules/samples.smk"
include: "rules/concept.smk"
include: "rules/pursuit.smk"
include: "rules/measure.smk"
include: "rules/publish.smk"


rule all:
    """The tables and figures, and all that lies in between, so that what is deleted is made anew."""
    default_target: True
    input:
        rules.preflight.output,
        TABLES,
        rules.write_pages.output,
        [*map(source_record, used_sources(config))],
        [*map(model_files, used_models(config))],
        every("<results>/samples/{samples}.parquet"),
        every("<results>/responses/{baseline}/baseline/part-{part}.parquet"),
        every("<results>/labels/{labels}.parquet"),
        every("<results>/labels/{labels}.summary.json"),
        every("<results>/labels/{labels}.agreement.csv") if LABELLER["second"] else [],
        every("<results>/words/{words}.csv"),
        every("<results>/dictionaries/{dictionary}.csv"),
        every("<results>/activations/{activations}.parquet"),
        every("<results>/rankings/{rankings}.csv"),
        every("<results>/heads/{selected}/selected.csv"),
        every("<results>/heads/{random}/random.csv"),
        every("<results>/responses/{scaled}/scaled/part-{part}.parquet"),
        every("<results>/expected/{expected}/part-{part}.parquet"),
        every("<results>/scores/{scores}.parquet"),
        every("<results>/decompositions/{decomposition}.parquet"),
        every("<results>/lens/{lens}.parquet"),
    message:
        "All is made."


include: "rules/audit.smk"
