"""Modules that replace those of transformers."""
