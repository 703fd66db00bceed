"""report.html and the verdict it shares with the terminal."""

import logging

# What matplotlib says where a home cannot be written, or the first time: it looks for fonts.
_OF_NO_USE = (
    "mkdir -p failed for path",
    "Matplotlib created a temporary cache directory",
    "Matplotlib is building the font cache",
)


def _is_of_use(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_OF_NO_USE)


for _name in ("matplotlib", "matplotlib.font_manager"):  # a filter holds for its own logger alone
    logging.getLogger(_name).addFilter(_is_of_use)
