"""QQNT's database format: cipher, pages, recovery of damaged files, message bodies."""
