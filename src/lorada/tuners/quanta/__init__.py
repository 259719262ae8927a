"""QuanTA: adds to a linear layer a matrix that is a product of small ones, its gates."""
