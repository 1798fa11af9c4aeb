"""Note in a checkpoint which products an export of it was found to need in the finer way: the next need not search.

python benchmarks/bundled/finer_products.py CHECKPOINT EXPORT
"""

from __future__ import annotations

from pathlib import Path

import click

from darl_rerank import Checkpoint


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("export", type=click.Path(exists=True, path_type=Path))
def main(folder: Path, export: Path) -> None:
    checkpoint, record = Checkpoint.load(folder), Checkpoint.load(export).export
    if record is None:
        raise click.UsageError(f"{export} is no export")
    found = {**checkpoint.finer_products, record.precision: record.finer_products}
    checkpoint.replace(finer_products=found).save(folder, overwrite=True)


if __name__ == "__main__":
    main()
