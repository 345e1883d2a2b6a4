"""How the bundled demo model is trained and judged; its files are in `model/`. Not part of the wheel."""
