"""What the scripts are made of. Imports no script; docs/development.md says which folder may import which."""
