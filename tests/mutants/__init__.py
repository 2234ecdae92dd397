"""Mutation testing: changes one place of a module at a time and looks whether a test fails. `make mutants` runs it.

`making` makes the changed modules, `targets` names the modules and the tests that may notice, `plugin` runs these tests for each
change inside one pytest process, `__main__` starts it, counts, and compares with `survivors.toml`.
"""
