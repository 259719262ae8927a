"""The maths of the paper as functions of tensors, without state (Eqs. 3-4 and 6-17)."""

