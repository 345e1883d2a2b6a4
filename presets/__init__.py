"""The presets that ship with localgemma: data, read by `localgemma_cli.planning.presets`."""
