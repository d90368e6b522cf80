"""Names of weights that are no parameters: old checkpoints store what today's models compute. Imports nothing."""

DERIVED_SUFFIXES = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
