"""QQ's own database: cipher, pages, salvage of damaged files, message bodies."""
