"""Text from the Hugging Face hub, streamed: nothing is kept but the tokens."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cramjax.data.fingerprints import Fingerprints
from cramjax.data.readers import Problems, Reading
from cramjax.errors import SourceLost, UserError
from cramjax.schema import DataConfig

# "allenai/c4:en", "wikimedia/wikipedia@1a2b3c:20231101.en", "./folder"
_NAME = re.compile(r"(?P<path>[^@:]+)(@(?P<revision>[^:]+))?(:(?P<config>.+))?")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One of the dataset's own shards, or a file of it.

    Attributes:
      source: as the config names it.
      path: the dataset's name on the hub, or a folder.
      config: of the dataset; None for its default.
      revision: the commit on the hub; None for a folder.
      content: hash that tells the dataset's version.
      split: e.g. "train".
      number: of the shard.
      count: of shards in the split.
    """

    source: str
    path: str
    config: str | None
    revision: str | None
    content: str
    split: str
    number: int
    count: int

    @property
    def name(self) -> str:
        """The dataset and the shard's number."""
        return f"{self.source} shard {self.number} of {self.count}"

    @property
    def size(self) -> None:
        """Unknown."""
        return None

    def facts(self, known: Fingerprints) -> dict[str, Any]:
        """Returns {"path", "version", "sha256" (of the version and the place)}."""
        del known
        place = json.dumps(dataclasses.astuple(self)[1:])
        return {
            "path": self.name,
            "version": self.content,
            "sha256": hashlib.sha256(place.encode()).hexdigest(),
        }

    def texts(self, reading: Reading, problems: Problems) -> Iterator[str]:
        """Yields the shard's documents.

        Raises:
          SourceLost: the connection was lost.
          UserError: the dataset has no such field.
        """
        records = None
        while True:
            try:
                if records is None:
                    stream = _load(self.path, self.config, self.revision, self.split)
                    records = iter(stream.shard(self.count, self.number))
                record = next(records, None)
            except Exception as error:  # of many kinds: HTTP, files, formats
                raise SourceLost(
                    f"{self.name}: reading stopped ({_line(error)}); the same command "
                    "goes on with what is finished"
                ) from error
            if record is None:
                return
            if (text := reading.text(record, self.name, problems)) is not None:
                yield text


def shards(name: str, data: DataConfig, known: Fingerprints) -> list[Shard]:
    """Returns the shards of a dataset; its newest commit is asked for once.

    Args:
      name: "NAME", "NAME:CONFIG" or "NAME@COMMIT:CONFIG" on the hub, or a folder.
      data: its `split`.
      known: remembers the commit and the number of shards.

    Raises:
      UserError: the package or the dataset is not there.
    """
    source = f"hf:{name}"
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"config.data.sources: {source!r} is not of the form hf:NAME:CONFIG or "
            "hf:NAME@COMMIT:CONFIG"
        )
    path, config = match["path"], match["config"]
    facts = known.get(f"{source} {data.split}")
    if facts is None or Path(path).is_dir():
        facts = _ask(source, path, config, match["revision"], data.split)
        known.put(f"{source} {data.split}", facts)
    return [
        Shard(source, path, config, split=data.split, number=number, **facts)
        for number in range(facts["count"])
    ]


def _ask(
    source: str, path: str, config: str | None, revision: str | None, split: str
) -> dict[str, Any]:
    """Returns what a `Shard` has to know of the version: asks the hub."""
    try:
        import datasets
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"config.data.sources: {source} needs the package datasets: pip install "
            '"cramjax[hf]", or -e ".[hf]" in a clone'
        ) from error
    try:
        if not Path(path).is_dir():
            revision = huggingface_hub.HfApi().dataset_info(path, revision=revision).sha
        builder = datasets.load_dataset_builder(path, config, revision=revision)
        stream = _load(path, config, revision, split)
    except Exception as error:  # of many kinds: HTTP, files, formats
        raise UserError(
            f"config.data.sources: {source} cannot be used ({_line(error)}); check the "
            "name, config.data.split, and the connection"
        ) from error
    content = revision or builder.hash
    return {"revision": revision, "content": content, "count": stream.num_shards}


def _load(path: str, config: str | None, revision: str | None, split: str) -> Any:
    import datasets

    return datasets.load_dataset(
        path, config, revision=revision, split=split, streaming=True
    )


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
