"""Write the effective configuration: config.yaml with every overlay applied."""

import yaml
from headpursuit.run.files import write_text
from headpursuit.run.rule import run_rule


def main(snakemake):
    """Write the config as it is in force."""
    write_text(
        snakemake.output[0],
        yaml.safe_dump(snakemake.params.config, sort_keys=False, allow_unicode=True),
    )


if __name__ == "__main__":
    run_rule(main, snakemake)
