"""The Hugging Face hub: its cache, downloads, errors."""
