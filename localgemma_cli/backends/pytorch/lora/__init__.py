"""LoRA and DoRA adapters: reading, checking and attaching them."""
