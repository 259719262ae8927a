"""Methods that act while a model trains: each is a callback of transformers' Trainer."""
