"""Who may write an answer, and how."""
