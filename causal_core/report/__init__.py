"""report.html and the verdict it shares with the terminal."""

import logging

# Warns, when it is imported, of a home that cannot be written: it looks for fonts again, no more.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
