"""Pure decisions, no torch: (model facts, preset, hardware, overrides) -> LoadPlan."""
