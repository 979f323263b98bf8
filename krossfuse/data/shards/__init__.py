"""Data sets in shards: tar files in the format of webdataset, and the manifest that lists them."""

from krossfuse.data.shards.manifest import Manifest, Shard, make_manifest, read_manifest
from krossfuse.data.shards.module import TarShards

__all__ = ["Manifest", "Shard", "TarShards", "make_manifest", "read_manifest"]
