"""The PyTorch backend. No other folder but `bench` imports torch or transformers."""

import os

# Before torch reads them. oneDNN makes one attention kernel per length and caches the last 1024, one megabyte
# per token of an answer. A step uses a dozen, and each length occurs once.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")
# Large tensors use pages of 2 MB where Linux lets programs choose: a prompt takes a sixth less time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
