"""Pretrain a BERT-like language model on one GPU within a day, in JAX."""
