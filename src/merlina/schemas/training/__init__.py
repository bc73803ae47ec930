"""The settings of a run: `config` has them all, and each other module a group of them."""
