"""Methods that change how training goes, as Trainer callbacks: one idea per file."""
