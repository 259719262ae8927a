"""The paper's tables and figures, with its published numbers beside ours."""
