"""The same work on Waferline and on the engines a user would pick instead: ``python -m benches.peers MODEL ...``."""
