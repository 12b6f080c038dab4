"""Tests of tritonbn; a package, so that no foreign `tests` can shadow `tests.tolerances`."""
