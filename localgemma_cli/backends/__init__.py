"""Where answers come from: the interface in `base`, PyTorch in this process, or a server over HTTP."""
