"""The checks of `POST /validate` and `POST /train`, most of them functions that return a CheckResult."""
