"""Files that come from anywhere: sizes and structure are checked before anything is done with what they hold.

No other part of the package opens weights, and none unpickles; ``SECURITY.md`` says what is promised.
"""
