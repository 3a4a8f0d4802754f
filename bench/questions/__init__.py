"""One file for each question, with its options and its measurement; none imports another.

Most have `add_options(parser)` and `ask(run)`: they run `--runs` times, and their results can be
compared and drawn. Those with `main(options)` print a report of their own instead.
"""
