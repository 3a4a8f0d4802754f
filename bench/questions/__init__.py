"""One file a question, with its options and what it measures; none imports another.

Most have `add_options(parser)` and `ask(run)`: they are asked `--runs` times, and their results can
be compared and drawn. Those with `main(options)` instead print a report of their own.
"""
