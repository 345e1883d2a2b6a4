"""The only folder that imports torch or transformers."""

import os

# Before torch reads them. Attention over each length is a kernel of its own to oneDNN, which by default keeps
# the last 1024, a megabyte for each token of an answer; one step uses a dozen, and no length comes back.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")
# Large tensors in pages of 2 MB where Linux leaves that to programs: a prompt is read in a sixth less time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
