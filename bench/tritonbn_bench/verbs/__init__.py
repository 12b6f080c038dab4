"""The verbs of the command line, a file each: `add(verbs)` declares arguments, `run(options)` acts.

Nothing heavy is imported by declaring, so that `--help` answers at once.
"""
