"""Draw the images of a data set, class by class, for selection and for evaluation."""

from headpursuit.images import prepare_images
from headpursuit.rule import run_rule
from headpursuit.tables import write_csv


def main(snakemake):
    """Write images (image_id, part, source, label, class_name, image) and classes."""
    params, output = snakemake.params, snakemake.output
    classes = prepare_images(
        snakemake.input.data,
        params.dataset,
        params.images,
        params.seed,
        snakemake.wildcards.dataset,
        output.images,
    )
    write_csv(output.classes, classes)


if __name__ == "__main__":
    run_rule(main, snakemake)
