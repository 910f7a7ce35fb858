"""Plans into tensors: the flat batch, the decoder, the sampler; and how much memory that may take."""
