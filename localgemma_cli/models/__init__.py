"""What --model names: facts, files on disk and the hub. No torch, no transformers."""
