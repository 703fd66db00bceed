"""report.html and the verdict it shares with the terminal."""
