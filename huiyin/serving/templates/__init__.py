"""The chat formats: a module for each, what they have in common, and whether a base model knows one."""
