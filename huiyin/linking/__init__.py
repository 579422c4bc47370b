"""Which message answers which, without a language model."""
