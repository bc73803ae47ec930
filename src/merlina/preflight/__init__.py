"""The checks of `POST /validate` and `POST /train`: one function for each, which returns a CheckResult."""
