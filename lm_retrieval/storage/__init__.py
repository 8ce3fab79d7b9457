"""Where things lie: local paths and URIs of object stores, through `pyarrow.fs`.

Corpora are streamed from there. Checkpoints and indexes are used from a local copy, because they are memory-mapped:
`local_folder` fetches what is new of them, `OutputFolder` sends what a run has made.
"""

from lm_retrieval.storage.cache import local_folder
from lm_retrieval.storage.location import Location, RemotePath, children, is_uri, locate, opened, read_ahead, resolved
from lm_retrieval.storage.output import OutputFolder, open_output

__all__ = [
    "Location",
    "OutputFolder",
    "RemotePath",
    "children",
    "is_uri",
    "local_folder",
    "locate",
    "open_output",
    "opened",
    "read_ahead",
    "resolved",
]
