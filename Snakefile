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
        every("<results>/responses/{baseline}/baseline/part-{part}.parquet", MEASURED),
        every("<results>/labels/{labels}.parquet", LABELLED),
        every("<results>/labels/{labels}.summary.json", LABELLED),
        every("<results>/labels/{labels}.agreement.csv", LABELLED if LABELLER["second"] else []),
        every("<results>/words/{words}.csv", WORDED),
        every("<results>/dictionaries/{dictionary}.csv", WORDED),
        every("<results>/activations/{activations}.parquet", CHOOSING),
        every("<results>/rankings/{rankings}.csv", WORDED),
        every("<results>/heads/{selected}/selected.csv", MEASURED),
        every("<results>/heads/{random}/random.csv", MEASURED),
        every("<results>/responses/{scaled}/scaled/part-{part}.parquet", ANSWERING),
        every("<results>/expected/{expected}/part-{part}.parquet", EXPECTING),
        every("<results>/scores/{scores}.parquet", MEASURED),
        every("<results>/decompositions/{decomposition}.parquet", SINGLE),
        every("<results>/lens/{lens}.parquet", SINGLE),
    message:
        "All is made."


include: "rules/audit.smk"
