"""Claims and what speaks for and against them: declared before the run, judged by a rule, kept in MLflow."""
