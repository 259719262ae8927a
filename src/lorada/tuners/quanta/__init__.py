"""QuanTA: a change of a weight made of small tensors."""
